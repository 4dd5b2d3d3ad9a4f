--- How queries differ from gold. One statement a line: `-- gold: ...` names the right query, the line
--- over a statement all classes that classify_errors must give for it, `-- none` for no difference.
--- The tables are in schema.sql. Lines that begin with three dashes are comments.

--- Spelling
-- gold: SELECT count(*) FROM singer
-- none
SELECT COUNT(1) FROM singer;
-- wrong_count_argument
SELECT COUNT(NULL) FROM singer;
-- gold: SELECT name FROM singer WHERE age > 30 AND country <> 'France'
-- none
select T1.name from singer as T1 where 'France' != T1.country and 30 < T1.age;
-- none
SELECT "name" FROM Singer s WHERE NOT (s.country = "France" OR s.age <= 30);
-- none
SELECT (name) AS title FROM singer WHERE ((age > 30.0)) AND NOT country = 'France' ORDER BY age;
-- wrong_operator
SELECT name FROM singer WHERE age >= 30 AND country <> 'France';
-- wrong_literal
SELECT name FROM singer WHERE age > 31 AND country <> 'France';
-- wrong_literal
SELECT name FROM singer WHERE age > 30 AND country <> 'france';
-- wrong_column
SELECT country FROM singer WHERE age > 30 AND country <> 'France';
-- wrong_column
SELECT name FROM singer WHERE id > 30 AND country <> 'France';
-- missing_condition
SELECT name FROM singer WHERE age > 30;
-- extra_condition
SELECT name FROM singer WHERE age > 30 AND country <> 'France' AND name IS NOT NULL;
-- wrong_connective
SELECT name FROM singer WHERE age > 30 OR country <> 'France';
-- wrong_column, wrong_operator
SELECT country FROM singer WHERE age < 30 AND country <> 'France';

-- gold: SELECT name FROM singer WHERE age BETWEEN 20 AND 30
-- none
SELECT name FROM singer WHERE age >= 20 AND age <= 30;
-- none
SELECT name FROM singer WHERE 30 >= age AND NOT age < 20;
-- wrong_operator
SELECT name FROM singer WHERE age > 20 AND age < 30;
-- wrong_operator, wrong_connective
SELECT name FROM singer WHERE age NOT BETWEEN 20 AND 30;

-- gold: SELECT name FROM singer WHERE country IN ('France', 'Italy')
-- none
SELECT name FROM singer WHERE country = 'Italy' OR country = 'France';
-- wrong_connective
SELECT name FROM singer WHERE country = 'Italy' AND country = 'France';
-- wrong_operator, wrong_connective
SELECT name FROM singer WHERE country NOT IN ('Italy', 'France');
-- missing_condition
SELECT name FROM singer WHERE country = 'Italy';

-- gold: SELECT title FROM song WHERE year = 2010 AND title LIKE '%Sun%'
-- none
SELECT title FROM song WHERE year = '2010' AND title LIKE '%sun%';
-- wrong_literal
SELECT title FROM song WHERE year = 2010 AND title LIKE '%sun';
-- wrong_operator
SELECT title FROM song WHERE year = 2010 AND title = '%Sun%';

--- Joins
-- gold: SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.year > 2000
-- none
SELECT name FROM song INNER JOIN singer ON singer_id = id WHERE year > 2000;
-- none
SELECT singer.name FROM song, singer WHERE song.year > 2000 AND song.singer_id = singer.id;
-- missing_join, missing_condition
SELECT name FROM singer;
-- wrong_join_key
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.song_id WHERE T2.year > 2000;
-- wrong_join_key
SELECT name FROM singer, song WHERE year > 2000;
-- wrong_join_side
SELECT T1.name FROM singer AS T1 LEFT JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.year > 2000;
-- wrong_nesting
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song WHERE year > 2000);
-- wrong_nesting, missing_condition
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song WHERE year >= 2000);
-- extra_join
SELECT a.name FROM singer a JOIN song b ON a.id = b.singer_id JOIN singer_in_concert c ON c.singer_id = a.id WHERE b.year > 2000;

-- gold: SELECT song.singer_id FROM singer JOIN song ON singer.id = song.singer_id
-- none
SELECT singer.id FROM singer JOIN song ON singer.id = song.singer_id;

-- gold: SELECT a.name FROM singer AS a JOIN singer AS b ON a.country = b.country WHERE b.name = 'Li'
-- none
SELECT y.name FROM singer AS x JOIN singer AS y ON x.country = y.country WHERE x.name = 'Li';

-- gold: SELECT theme FROM concert JOIN singer_in_concert USING (concert_id)
-- none
SELECT theme FROM concert NATURAL JOIN singer_in_concert;
-- none
SELECT theme FROM concert c JOIN singer_in_concert s ON s.concert_id = c.concert_id;

-- gold: SELECT name FROM singer
-- wrong_table
SELECT name FROM stadium;
-- wrong_table, wrong_column
SELECT title FROM song;
-- unknown_table, wrong_table
SELECT name FROM artist;
-- unknown_column, wrong_column
SELECT full_name FROM singer;
-- unknown_column, wrong_column
SELECT singer.title FROM singer;
-- does_not_parse
SELECT name FROM singer WHERE;
-- does_not_parse
SELECT name FROM singer JOIN song ON (;
-- does_not_parse
SELECT;
-- not_a_query
DELETE FROM singer;
-- unknown_column, wrong_table, wrong_column, wrong_nesting
SELECT x FROM stadium, (SELECT capacity AS x FROM singer);
-- ambiguous_column, extra_join
SELECT name FROM singer JOIN stadium ON singer.id = stadium.stadium_id;
-- extra_distinct
SELECT DISTINCT name FROM singer;
-- extra_select_column
SELECT name, age FROM singer;
-- wrong_limit
SELECT name FROM singer LIMIT 1;
-- wrong_nesting, wrong_table, wrong_column
SELECT name FROM (SELECT title AS name FROM song);
-- none
SELECT * FROM (SELECT name FROM singer);
-- none
WITH all_singers AS (SELECT name FROM singer) SELECT name AS x FROM singer ORDER BY 1;
-- misused_aggregate
SELECT name FROM singer ORDER BY count(*);

--- Result columns and aggregates
-- gold: SELECT country, count(*) FROM singer GROUP BY country
-- none
SELECT s.country AS c, COUNT(*) AS n FROM singer s GROUP BY c;
-- none
SELECT DISTINCT country, count(*) FROM singer GROUP BY 1;
-- select_order
SELECT count(*), country FROM singer GROUP BY country;
-- missing_select_column, wrong_grouping
SELECT country FROM singer GROUP BY country, id;
-- wrong_count_argument
SELECT country, count(id) FROM singer GROUP BY country;
-- missing_select_column
SELECT count(*) FROM singer GROUP BY country;
-- wrong_aggregate
SELECT country, sum(age) FROM singer GROUP BY country;
-- extra_distinct
SELECT country, count(DISTINCT name) FROM singer GROUP BY country;
-- wrong_grouping
SELECT country, count(*) FROM singer GROUP BY country, name;
-- wrong_grouping
SELECT country, count(*) FROM singer;
-- wrong_column
SELECT name, count(*) FROM singer GROUP BY name;
-- extra_condition
SELECT country, count(*) FROM singer GROUP BY country HAVING count(*) > 1;

-- gold: SELECT DISTINCT country FROM singer
-- none
SELECT country FROM singer GROUP BY country;
-- missing_distinct
SELECT country FROM singer;

-- gold: SELECT max(age), min(age) FROM singer
-- wrong_aggregate
SELECT max(age), avg(age) FROM singer;
-- wrong_column
SELECT max(id), min(age) FROM singer;
-- wrong_expression
SELECT max(age), min(age) + 1 FROM singer;

-- gold: SELECT age * 2 + id FROM singer
-- none
SELECT id + 2 * age FROM singer;
-- wrong_literal
SELECT age * 3 + id FROM singer;

--- Order, limit, sets, nesting
-- gold: SELECT name FROM singer ORDER BY age DESC LIMIT 3
-- none
SELECT s.name AS n FROM singer s ORDER BY s.age DESC LIMIT 3;
-- wrong_order
SELECT name FROM singer ORDER BY age LIMIT 3;
-- wrong_order
SELECT name FROM singer LIMIT 3;
-- wrong_order
SELECT name FROM singer ORDER BY name DESC LIMIT 3;
-- wrong_limit
SELECT name FROM singer ORDER BY age DESC LIMIT 1;
-- wrong_limit
SELECT name FROM singer ORDER BY age DESC;

-- gold: SELECT id FROM singer EXCEPT SELECT singer_id FROM song
-- none
SELECT s.id AS x FROM singer s EXCEPT SELECT DISTINCT singer_id FROM song;
-- wrong_set_operation
SELECT id FROM singer UNION SELECT singer_id FROM song;
-- wrong_set_operation
SELECT singer_id FROM song EXCEPT SELECT id FROM singer;
-- wrong_set_operation
SELECT id FROM singer;
-- wrong_table, wrong_column
SELECT id FROM singer EXCEPT SELECT concert_id FROM singer_in_concert;

-- gold: SELECT id FROM singer UNION SELECT singer_id FROM song
-- none
SELECT singer_id FROM song UNION SELECT id FROM singer;
-- wrong_set_operation
SELECT id FROM singer UNION ALL SELECT singer_id FROM song;

-- gold: SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)
-- none
SELECT name FROM singer s WHERE NOT s.id IN (SELECT DISTINCT o.singer_id FROM song o ORDER BY 1);
-- wrong_operator
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song);
-- wrong_column
SELECT name FROM singer WHERE id NOT IN (SELECT song_id FROM song);
-- extra_condition
SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song WHERE year > 2000);
-- missing_condition, wrong_nesting
SELECT name FROM singer;

-- gold: SELECT name FROM singer WHERE age = (SELECT max(age) FROM singer)
-- wrong_aggregate
SELECT name FROM singer WHERE age = (SELECT min(age) FROM singer);
-- wrong_nesting
SELECT name FROM singer WHERE age = 80;

-- gold: SELECT avg(n) FROM (SELECT count(*) AS n FROM song GROUP BY singer_id)
-- none
SELECT avg(t.songs) FROM (SELECT count(*) AS songs FROM song s GROUP BY s.singer_id) AS t;
-- none
WITH t AS (SELECT count(*) AS songs FROM song GROUP BY singer_id) SELECT avg(songs) FROM t;
-- wrong_grouping
SELECT avg(n) FROM (SELECT count(*) AS n FROM song GROUP BY year);

-- gold: SELECT name FROM singer WHERE EXISTS (SELECT * FROM song WHERE song.singer_id = singer.id)
-- none
SELECT name FROM singer AS a WHERE EXISTS (SELECT 1 FROM song AS b WHERE a.id = b.singer_id);
-- wrong_operator
SELECT name FROM singer WHERE NOT EXISTS (SELECT * FROM song WHERE song.singer_id = singer.id);
-- wrong_column
SELECT name FROM singer AS a WHERE EXISTS (SELECT 1 FROM song AS b WHERE a.age = b.singer_id);
