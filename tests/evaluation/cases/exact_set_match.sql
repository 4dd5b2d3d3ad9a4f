--- Pairs whose verdict by Spider's exact-set match was worked out by hand from its rules and found
--- the same with its script. One statement a line: `-- gold: ...` names the query, `-- match ...` or
--- `-- no_match ...` gives the verdict on the statement below it and what it is about. The tables are
--- in tests/sql/cases/schema.sql.

-- gold: SELECT name, country FROM singer WHERE age > 30 AND country = 'France'
-- match spelling
select singer.NAME , singer.country from Singer where age > 30 and country = "France" ;
-- match alias
SELECT T1.name, T1.country FROM singer AS T1 WHERE T1.age > 30 AND T1.country = 'France'
-- match values
SELECT name, country FROM singer WHERE age > 2.5 AND country = 'Peru'
-- match order_of_columns_and_conditions
SELECT country, name FROM singer WHERE country = 'France' AND age > 30
-- match distinct
SELECT DISTINCT name, country FROM singer WHERE age > 30 AND country = 'France'
-- match column_as_value
SELECT name, country FROM singer WHERE age > id AND country = name
-- match no_comma
SELECT name country FROM singer WHERE age > 30 AND country = 'France'
-- match after_the_end
SELECT name, country FROM singer WHERE age > 30 AND country = 'France' ; DROP TABLE singer
-- no_match fewer_columns
SELECT name FROM singer WHERE age > 30 AND country = 'France'
-- no_match a_column_twice
SELECT name, name FROM singer WHERE age > 30 AND country = 'France'
-- no_match operator
SELECT name, country FROM singer WHERE age >= 30 AND country = 'France'
-- no_match negation
SELECT name, country FROM singer WHERE age > 30 AND NOT country = 'France'
-- no_match connective
SELECT name, country FROM singer WHERE age > 30 OR country = 'France'
-- no_match condition_twice
SELECT name, country FROM singer WHERE age > 30 AND age > 30
-- no_match further_clause
SELECT name, country FROM singer WHERE age > 30 AND country = 'France' LIMIT 1
-- no_match further_order
SELECT name, country FROM singer WHERE age > 30 AND country = 'France' ORDER BY name
-- no_match further_table
SELECT singer.name, country FROM singer JOIN stadium WHERE age > 30 AND country = 'France'
-- no_match aggregate
SELECT max(name), country FROM singer WHERE age > 30 AND country = 'France'
-- no_match nothing
;
-- no_match unreadable_alias_without_as
SELECT t.name, t.country FROM singer t WHERE t.age > 30 AND t.country = 'France'
-- no_match unreadable_column_alias
SELECT name AS who, country FROM singer WHERE age > 30 AND country = 'France'
-- no_match unreadable_operator_without_spaces
SELECT name, country FROM singer WHERE age > 30 AND country='France'
-- no_match unreadable_backticks
SELECT `name`, country FROM singer WHERE age > 30 AND country = 'France'
-- no_match unreadable_quote_in_a_string
SELECT name, country FROM singer WHERE age > 30 AND country = 'Cote d''Ivoire'
-- no_match unreadable_open_quote
SELECT name, country FROM singer WHERE age > 30 AND country = "Cote d'Ivoire"
-- no_match unreadable_parentheses
SELECT name, country FROM singer WHERE (age > 30 AND country = 'France')
-- no_match unreadable_unknown_column
SELECT name, country FROM singer WHERE height > 30 AND country = 'France'
-- no_match unreadable_alias_like_a_table
SELECT song.name, song.country FROM singer AS song WHERE song.age > 30 AND song.country = 'France'
-- no_match placeholder_inside_a_word
SELECT name, country FROM singer AS value_1 WHERE value_1.age > 30 AND value_2.country = 'France'
-- no_match unreadable_as_at_the_end
SELECT name, country FROM singer WHERE age > 30 AND country = 'France' ; AS
-- no_match unreadable_missing_connective
SELECT name, country FROM singer WHERE age > 30 country = 'France'

-- gold: SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id
-- match join_condition
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.age = T2.year AND T1.id = T2.singer_id
-- match no_join_condition
SELECT singer.name FROM song JOIN singer
-- match second_half_of_or_behind_a_column
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id OR T1.age = T2.year
-- no_match or_in_a_join_condition
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = 1 OR T1.age = T2.year
-- no_match like_in_a_join_condition
SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.name LIKE T2.title
-- no_match table_twice
SELECT T1.name FROM singer AS T1 JOIN song AS T2 JOIN song AS T3
-- no_match unreadable_inner_join
SELECT T1.name FROM singer AS T1 INNER JOIN song AS T2 ON T1.id = T2.singer_id
-- no_match unreadable_comma
SELECT T1.name FROM singer AS T1, song AS T2 WHERE T1.id = T2.singer_id

-- gold: SELECT T1.id FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T1.id = 1
-- match linked_by_a_foreign_key
SELECT T2.singer_id FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.singer_id = 1
-- no_match its_table_is_not_in_from
SELECT singer_in_concert.singer_id FROM singer AS T1 JOIN song AS T2 WHERE T1.id = 1

-- gold: SELECT id FROM singer
-- no_match linked_but_another_table
SELECT singer_id FROM song
-- no_match linked_only_behind_the_set_operator
SELECT id FROM singer UNION SELECT singer_id FROM song

-- gold: SELECT country, count(*) FROM singer GROUP BY country HAVING count(*) > 1 AND max(age) > 50
-- match values_and_distinct
SELECT count(DISTINCT *), country FROM singer GROUP BY country HAVING count(*) > 2 AND max(DISTINCT age) > 9
-- no_match order_of_conditions
SELECT country, count(*) FROM singer GROUP BY country HAVING max(age) > 50 AND count(*) > 1
-- no_match having
SELECT country, count(*) FROM singer GROUP BY country HAVING count(*) > 1 AND min(age) > 50
-- no_match grouping
SELECT country, count(*) FROM singer GROUP BY name HAVING count(*) > 1 AND max(age) > 50
-- no_match no_grouping
SELECT country, count(*) FROM singer
-- no_match counted_column
SELECT country, count(name) FROM singer GROUP BY country HAVING count(*) > 1 AND max(age) > 50

-- gold: SELECT count(*) FROM singer GROUP BY country, name
-- no_match order_of_grouping_columns
SELECT count(*) FROM singer GROUP BY name, country

-- gold: SELECT count(*) FROM singer
-- no_match unreadable_having_without_grouping
SELECT count(*) FROM singer HAVING count(*) > 0

-- gold: SELECT name FROM singer ORDER BY age DESC, name LIMIT 3
-- match limit
SELECT name FROM singer ORDER BY age DESC, name LIMIT 5 OFFSET 2
-- match full_stop_at_the_end
SELECT name FROM singer ORDER BY age DESC, name LIMIT 3.
-- match last_direction_counts_for_all
SELECT name FROM singer ORDER BY age ASC, name DESC LIMIT 3
-- no_match direction
SELECT name FROM singer ORDER BY age, name LIMIT 3
-- no_match order_of_keys
SELECT name FROM singer ORDER BY name, age DESC LIMIT 3
-- no_match no_limit
SELECT name FROM singer ORDER BY age DESC, name
-- no_match aggregate_in_the_key
SELECT name FROM singer ORDER BY max(age) DESC, name LIMIT 3

-- gold: SELECT name FROM singer WHERE id IN (SELECT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id WHERE T1.year = 1999 AND T1.title = 'a' LIMIT 3)
-- match values_in_a_subquery
SELECT name FROM singer WHERE id IN (SELECT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.age WHERE T1.year = 2000 AND T1.title = 'b' LIMIT 5)
-- no_match distinct_in_a_subquery
SELECT name FROM singer WHERE id IN (SELECT DISTINCT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id WHERE T1.year = 1999 AND T1.title = 'a' LIMIT 3)
-- no_match order_of_conditions_in_a_subquery
SELECT name FROM singer WHERE id IN (SELECT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id WHERE T1.title = 'a' AND T1.year = 1999 LIMIT 3)
-- no_match left_side_of_a_join_in_a_subquery
SELECT name FROM singer WHERE id IN (SELECT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T2.id = T1.singer_id WHERE T1.year = 1999 AND T1.title = 'a' LIMIT 3)
-- no_match linked_column_in_a_subquery
SELECT name FROM singer WHERE id IN (SELECT T2.id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id WHERE T1.year = 1999 AND T1.title = 'a' LIMIT 3)
-- no_match not_in
SELECT name FROM singer WHERE id NOT IN (SELECT T1.singer_id FROM song AS T1 JOIN singer AS T2 ON T1.singer_id = T2.id WHERE T1.year = 1999 AND T1.title = 'a' LIMIT 3)
-- no_match value_for_the_subquery
SELECT name FROM singer WHERE id IN (1)

-- gold: SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song LIMIT 3)
-- match offset_and_limit_without_a_space
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song LIMIT 1,2)
-- no_match unreadable_offset_and_limit
SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song LIMIT 1, 2)

-- gold: SELECT name FROM singer WHERE id = 1 AND age = 2 AND country = 'a' LIMIT 3
-- match a_column_as_value_hides_what_follows
SELECT name FROM singer WHERE id = 1 AND age = 2 AND country = name ; LIMIT 3
-- no_match behind_the_end
SELECT name FROM singer WHERE id = 1 AND age = 2 AND country = 'a' ; LIMIT 3
-- no_match one_connective
SELECT name FROM singer WHERE id = 1 AND age = 2 OR country = 'a' LIMIT 3
-- no_match unreadable_missing_connective
SELECT name FROM singer WHERE id = 1 AND age = 2 country = 'a' LIMIT 3

-- gold: SELECT name FROM singer WHERE id = 1 AND age = 2 OR country = 'a'
-- match how_they_nest
SELECT name FROM singer WHERE id = 1 OR age = 2 AND country = 'a'
-- no_match only_or
SELECT name FROM singer WHERE id = 1 OR age = 2 OR country = 'a'

-- gold: SELECT name FROM singer ORDER BY age DESC
-- match full_stop_behind_a_word
SELECT name FROM singer ORDER BY age DESC.
-- no_match code_fence_without_a_stop
SELECT name FROM singer ORDER BY age```

-- gold: SELECT count(*) FROM (SELECT singer_id FROM song WHERE year = 1999 GROUP BY singer_id)
-- match spelling_in_from
SELECT count(*) FROM ( SELECT song.singer_id FROM song WHERE song.year = 1999.0 GROUP BY singer_id )
-- no_match values_in_from
SELECT count(*) FROM (SELECT singer_id FROM song WHERE year = 2000 GROUP BY singer_id)
-- no_match unreadable_alias_of_a_subquery
SELECT count(*) FROM (SELECT singer_id FROM song WHERE year = 1999 GROUP BY singer_id) AS t

-- gold: SELECT name FROM singer WHERE age BETWEEN 20 AND 30 EXCEPT SELECT name FROM stadium
-- match values_of_between
SELECT name FROM singer WHERE age BETWEEN 1 AND 2 EXCEPT SELECT DISTINCT name FROM stadium
-- no_match operator_of_sets
SELECT name FROM singer WHERE age BETWEEN 20 AND 30 INTERSECT SELECT name FROM stadium
-- no_match second_query
SELECT name FROM singer WHERE age BETWEEN 20 AND 30 EXCEPT SELECT theme FROM concert
-- no_match no_second_query
SELECT name FROM singer WHERE age BETWEEN 20 AND 30
-- no_match swapped
SELECT name FROM stadium EXCEPT SELECT name FROM singer WHERE age BETWEEN 20 AND 30

-- gold: SELECT age - id FROM singer WHERE max(age) = 1
-- match parentheses
SELECT (age - id) FROM singer WHERE (max(age)) = 1
-- no_match operands
SELECT id - age FROM singer WHERE max(age) = 1
-- no_match operator
SELECT age + id FROM singer WHERE max(age) = 1
-- no_match unreadable_number_in_arithmetic
SELECT age - 1 FROM singer WHERE max(age) = 1
