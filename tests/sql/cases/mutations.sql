--- Mutants that mutate_sql must find. One statement a line: `-- gold: ...` names the query, `-- kind`
--- what is wrong with the statement below it. The tables are in schema.sql.

-- gold: SELECT name FROM singer WHERE age > 30
-- wrong_column
SELECT country FROM singer WHERE age > 30;
-- wrong_column
SELECT name FROM singer WHERE id > 30;
-- wrong_operator
SELECT name FROM singer WHERE age >= 30;
-- wrong_operator
SELECT name FROM singer WHERE age < 30;
-- wrong_literal
SELECT name FROM singer WHERE age > 31;
-- wrong_literal
SELECT name FROM singer WHERE age > 29;
-- condition_dropped
SELECT name FROM singer;
-- distinct_added
SELECT DISTINCT name FROM singer WHERE age > 30;

-- gold: SELECT DISTINCT country, name FROM singer WHERE country = 'France' AND name LIKE '%Li%'
-- select_column_dropped
SELECT DISTINCT country FROM singer WHERE country = 'France' AND name LIKE '%Li%';
-- distinct_dropped
SELECT country, name FROM singer WHERE country = 'France' AND name LIKE '%Li%';
-- and_or
SELECT DISTINCT country, name FROM singer WHERE country = 'France' OR name LIKE '%Li%';
-- negation
SELECT DISTINCT country, name FROM singer WHERE country = 'France' AND NOT name LIKE '%Li%';
-- wrong_operator
SELECT DISTINCT country, name FROM singer WHERE country = 'France' AND name = '%Li%';
-- condition_dropped
SELECT DISTINCT country, name FROM singer WHERE country = 'France';

-- gold: SELECT name FROM singer WHERE name = "Li"
-- wrong_literal
SELECT name FROM singer WHERE name = 'L';
-- wrong_literal
SELECT name FROM singer WHERE name = 'LI';

-- gold: SELECT max(age) FROM singer
-- wrong_aggregate
SELECT min(age) FROM singer;

-- gold: SELECT count(*) FROM singer
-- wrong_table
SELECT count(*) FROM song;
-- wrong_table
SELECT count(*) FROM singer_in_concert;

-- gold: SELECT count(DISTINCT country) FROM singer
-- count_argument
SELECT count(country) FROM singer;
-- count_argument
SELECT count(*) FROM singer;

-- gold: SELECT country, count(*) FROM singer GROUP BY country, age HAVING count(*) > 1
-- group_dropped
SELECT country, count(*) FROM singer;
-- wrong_group_key
SELECT country, count(*) FROM singer GROUP BY country HAVING count(*) > 1;
-- condition_dropped
SELECT country, count(*) FROM singer GROUP BY country, age;
-- wrong_literal
SELECT country, count(*) FROM singer GROUP BY country, age HAVING count(*) > 2;

-- gold: SELECT country FROM singer GROUP BY country
-- wrong_column
SELECT name FROM singer GROUP BY name;
-- wrong_group_key
SELECT country FROM singer GROUP BY name;

-- gold: SELECT name FROM singer ORDER BY age DESC LIMIT 3
-- order_dropped
SELECT name FROM singer LIMIT 3;
-- order_direction
SELECT name FROM singer ORDER BY age LIMIT 3;
-- wrong_order_key
SELECT name FROM singer ORDER BY id DESC LIMIT 3;
-- wrong_limit
SELECT name FROM singer ORDER BY age DESC LIMIT 2;
-- wrong_limit
SELECT name FROM singer ORDER BY age DESC LIMIT 4;
-- wrong_limit
SELECT name FROM singer ORDER BY age DESC;

-- gold: SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.year > 2000
-- join_dropped
SELECT T1.name FROM singer AS T1;
-- join_side
SELECT T1.name FROM singer AS T1 LEFT JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.year > 2000;
-- wrong_join_key
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.age = T2.singer_id WHERE T2.year > 2000;

-- gold: SELECT T2.title FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T1.id = 3
-- join_dropped
SELECT T2.title FROM song AS T2 WHERE T2.singer_id = 3;

-- gold: SELECT title FROM song
-- join_added
SELECT title FROM song JOIN singer ON song.singer_id = singer.id;

-- gold: SELECT id FROM singer EXCEPT SELECT singer_id FROM song
-- set_operation
SELECT id FROM singer INTERSECT SELECT singer_id FROM song;
-- set_operation
SELECT singer_id FROM song EXCEPT SELECT id FROM singer;
-- set_operand_dropped
SELECT id FROM singer;

-- gold: SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)
-- negation
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song);

-- gold: SELECT name FROM singer WHERE age BETWEEN 20 AND 30
-- wrong_operator
SELECT name FROM singer WHERE (age > 20 AND age < 30);
-- negation
SELECT name FROM singer WHERE NOT age BETWEEN 20 AND 30;

-- gold: SELECT name FROM singer WHERE country IS NULL
-- negation
SELECT name FROM singer WHERE NOT country IS NULL;
