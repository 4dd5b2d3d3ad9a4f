-- Queries on the schema of tests/sql/cases/schema.sql. The comment above each is what
-- `QuestionWriter` makes of it where it always takes its first wording, without "What is".
--- one table
-- the name of singers?
SELECT name FROM singer
-- all columns of singers?
SELECT * FROM singer
-- the different countries of singers?
SELECT DISTINCT country FROM singer
-- the different combinations of name and country of singers?
SELECT DISTINCT name, country FROM singer
-- the number of singers?
SELECT count(*) FROM singer
-- the number of singers whose age is at least 30?
SELECT count(*) FROM singer WHERE age >= 30
-- the number of singers with a known age?
SELECT count(age) FROM singer
-- the number of different countries of singers?
SELECT count(DISTINCT country) FROM singer
-- the average age and maximum age of singers?
SELECT avg(age), max(age) FROM singer
-- the number of singers and average age for singers?
SELECT count(*), avg(age) FROM singer
-- the age plus the id of singers?
SELECT age + id FROM singer
--- conditions
-- the name of singers whose country is France and whose age is less than 30?
SELECT name FROM singer WHERE country = 'France' AND age < 30
-- the name of singers where the country is France or the age is less than 30?
SELECT name FROM singer WHERE country = 'France' OR age < 30
-- the name of singers where either the country is France or the country is Spain and the age is 3?
SELECT name FROM singer WHERE (country = 'France' OR country = 'Spain') AND age = 3
-- the name of singers where the country is France or both the country is Spain and the age is 3?
SELECT name FROM singer WHERE country = 'France' OR country = 'Spain' AND age = 3
-- the name of singers whose country is not France and whose name contains Lee?
SELECT name FROM singer WHERE country != 'France' AND name LIKE '%Lee%'
-- the name of singers whose name does not start with "lee"?
SELECT name FROM singer WHERE name NOT LIKE 'lee%'
-- the name of singers whose age is between 20 and 30?
SELECT name FROM singer WHERE age BETWEEN 20 AND 30
-- the name of singers whose country is one of France and Spain?
SELECT name FROM singer WHERE country IN ('France', 'Spain')
-- the name of singers whose country is missing?
SELECT name FROM singer WHERE country IS NULL
-- the name of singers where the country is known?
SELECT name FROM singer WHERE country IS NOT NULL
-- the theme of concerts whose held is after 2014-01-01?
SELECT theme FROM concert WHERE held > '2014-01-01'
-- the name of singers whose age is greater than -1?
SELECT name FROM singer WHERE age > -1
-- the name of singers whose country is "rock and roll"?
SELECT name FROM singer WHERE country = "rock and roll"
--- groups and order
-- the country and number of singers for each country of singers?
SELECT country, count(*) FROM singer GROUP BY country
-- each country of singers, keeping only groups where the number of singers is greater than 1?
SELECT country FROM singer GROUP BY country HAVING count(*) > 1
-- the name of singers, sorted by the age in descending order?
SELECT name FROM singer ORDER BY age DESC
-- the name of singers, only for the one with the highest age?
SELECT name FROM singer ORDER BY age DESC LIMIT 1
-- the name of singers, only for the 3 with the lowest age?
SELECT name FROM singer ORDER BY age LIMIT 3
-- the name of singers, only the first one when sorted by the name in ascending order?
SELECT name FROM singer ORDER BY name LIMIT 1
-- the name of singers, only the first 2 when sorted by the age in ascending order and the name in descending order?
SELECT name FROM singer ORDER BY age, name DESC LIMIT 2
--- joins
-- the title of the song and name of the singer for songs with their singer where the age of the singer is greater than 30 and the name is Bo?
SELECT T2.title, T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T1.age > 30 AND T1.name = 'Bo'
-- the number of songs with their singer?
SELECT count(*) FROM singer AS T1 JOIN song AS T2 ON T2.singer_id = T1.id
-- the name of the singer and number of songs for each name of songs with their singer?
SELECT T1.name, count(*) FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id GROUP BY T1.name
-- the name of the singer and theme of the concert for singer in concerts with their singer and concert?
SELECT T1.name, T3.theme FROM singer AS T1 JOIN singer_in_concert AS T2 ON T1.id = T2.singer_id JOIN concert AS T3 ON T2.concert_id = T3.concert_id
-- the title of the song for matching combinations of song, singer and singer in concert?
SELECT T1.title FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id JOIN singer_in_concert AS T3 ON T3.singer_id = T2.id
--- nested queries
-- the name of singers where the id is not among the singer id of songs?
SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)
-- the name of singers whose age is greater than the average age of singers whose country is Spain?
SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer WHERE country = 'Spain')
-- the name of singers whose age is 25, together with the name of singers whose country is Spain, without repeats?
SELECT name FROM singer WHERE age = 25 UNION SELECT name FROM singer WHERE country = 'Spain'
-- what the country of singers whose age is 25 and the country of singers whose age is 44 have in common?
SELECT country FROM singer WHERE age = 25 INTERSECT SELECT country FROM singer WHERE age = 44
-- the id of singers, except those that are among the singer id of songs, without repeats?
SELECT id FROM singer EXCEPT SELECT singer_id FROM song
-- the name of singers whose id is among those singer ids of songs for each of which the number of songs is greater than 1?
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song GROUP BY singer_id HAVING count(*) > 1)
-- the name of singers whose age is greater than 30 and whose id is among the singer id of songs whose title is Rain?
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song WHERE title = 'Rain') AND age > 30
-- the name of the singer for songs with their singer, only for the one with the highest age of the singer?
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id ORDER BY T1.age DESC LIMIT 1
