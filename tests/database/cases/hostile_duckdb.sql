--- Queries that must not reach beyond the tables of a DuckDB database. One statement a line; the line
--- over statements names how each must end: denied, execution_error, syntax_error or ok. {file} is a
--- file with the word "secret", {folder} its folder. The table is t (a, b), the macros are in the test.
--- Lines that begin with three dashes are comments.

--- Text run as SQL, and statements taken apart
-- denied
SELECT * FROM query('SELECT 42');
SELECT * FROM query/**/('SELECT 42');
SELECT * FROM query /* a /* nested */ comment */ ('SELECT 42');
SELECT * FROM query ('SELECT 42');
SELECT * FROM "query"($$SELECT 42$$);
SELECT * FROM "QUERY" ('SELECT 42');
SELECT * FROM main.query('SELECT 42');
SELECT * FROM system.main.query('SELECT 42');
SELECT * FROM "system"."main"."query_table"('t');
SELECT * FROM query_table('pg_settings');
SELECT * FROM query_table(['t']);
SELECT * FROM query​('SELECT 42');
SELECT setseed​(0.5);
SELECT current_setting﻿('threads');
SELECT * FROM (query('SELECT 42')) AS x(y);
SELECT * FROM t, LATERAL (SELECT * FROM query('SELECT 42'));
SELECT (SELECT count(*) FROM query('SELECT 42'));
WITH c AS (FROM query('SELECT 42')) SELECT * FROM c;
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 42'));
SELECT json_serialize_sql('SELECT 42');
SELECT json_deserialize_sql('{}');
SELECT json_serialize_plan('SELECT 42');
SELECT * FROM histogram_values('pg_settings', name);
SELECT * FROM histogram('duckdb_databases', path);

--- State of the connection
-- denied
SELECT setseed(0.5);
SELECT setseed/**/(0.5);
SELECT "setseed"(0.5);
SELECT (0.5).setseed();
SELECT system.main.setseed(0.5);
SELECT a FROM t WHERE setseed(0.5) IS NULL;
SELECT a FROM t ORDER BY setseed(a);
SELECT a FROM t LIMIT setseed(0.5);
SELECT sum(a) FILTER (WHERE setseed(0.5) IS NULL) FROM t;
SELECT sum(a) OVER (PARTITION BY setseed(0.5)) FROM t;
SELECT sum(a) OVER (ORDER BY a ROWS BETWEEN setseed(0.5) PRECEDING AND CURRENT ROW) FROM t;
SELECT list_transform([1], lambda x: setseed(x));
SELECT list_transform([1], lambda x: x.setseed());
SELECT [setseed(x) FOR x IN [0.5] IF setseed(x) IS NULL];
SELECT COLUMNS(lambda c: c = current_setting('threads')) FROM t;
SELECT * REPLACE (setseed(0.5) AS a) FROM t;
SELECT CASE WHEN true THEN setseed(0.5) END;
SELECT {'a': [setseed(0.5)]};
SELECT MAP {'a': setseed(0.5)};
SELECT 1 UNION ALL SELECT setseed(0.5);
SELECT 1 WHERE EXISTS (SELECT setseed(0.5));
SELECT DISTINCT ON (setseed(0.5)) a FROM t;
SELECT a FROM t GROUP BY GROUPING SETS ((a, setseed(0.5)));
SELECT a FROM t QUALIFY row_number() OVER (ORDER BY setseed(0.5)) = 1;
VALUES (setseed(0.5));
DESCRIBE SELECT setseed(0.5);
SUMMARIZE SELECT setseed(0.5);
PIVOT t ON b IN (1, 2) USING sum(setseed(a));
SELECT nextval('s');
SELECT currval('s');
SELECT setval('s', 1);
SELECT write_log('x');
SELECT getvariable('x');
SELECT txid_current();
SELECT current_query();
SELECT current_connection_id();
SELECT sleep_ms(10);
SELECT pg_sleep(1);
SELECT stats(a) FROM t;
SELECT * FROM checkpoint();
SELECT * FROM force_checkpoint();
SELECT * FROM enable_logging();
SELECT * FROM enable_profiling();
SELECT * FROM disable_logging();
SELECT * FROM truncate_duckdb_logs();
SELECT * FROM register_external_resource('x', 'y', 'z');
SELECT * FROM register_external_resource_type('x');
SELECT * FROM create_external_resource('x');
SELECT * FROM destroy_external_resource('setseed');
SELECT * FROM deregister_external_resource('x');

--- Settings and paths
-- denied
SELECT current_setting('temp_directory');
SELECT current_setting ('temp_directory');
SELECT current_setting/*x*/('temp_directory');
SELECT 'threads'.current_setting();
SELECT pg_catalog.current_setting('threads');
SELECT getenv('HOME');
SELECT * FROM duckdb_settings();
SELECT * FROM "duckdb_settings"();
SELECT * FROM system.main.duckdb_settings();
SELECT * FROM pg_settings;
SELECT * FROM PG_Settings;
SELECT * FROM pg_catalog.pg_settings;
SELECT * FROM system.pg_catalog.pg_settings;
SELECT * FROM main_database.pg_catalog.pg_settings;
WITH x AS (WITH pg_settings AS (SELECT 1) FROM pg_settings) SELECT * FROM x, pg_settings;
SELECT * FROM duckdb_databases;
SELECT * FROM duckdb_databases();
SELECT * FROM system.main.duckdb_databases;
SELECT * FROM pragma_database_list;
SELECT * FROM pragma_database_size();
SELECT * FROM pg_database;
SELECT * FROM duckdb_logs;
SELECT * FROM duckdb_functions();
SELECT * FROM duckdb_extensions();
SELECT * FROM duckdb_secrets();
SELECT * FROM which_secret('x', 'y');
SELECT * FROM duckdb_memory();
SELECT * FROM duckdb_variables();
SELECT * FROM duckdb_prepared_statements();
SELECT * FROM pragma_version();
SELECT * FROM pragma_user_agent();
SELECT * FROM pragma_platform();
SELECT * FROM pragma_table_info('t');
SELECT * FROM pragma_storage_info('t');
SHOW memory_limit;
SHOW "memory_limit";
SHOW ALL;
SHOW DATABASES;
SHOW TABLES;
SHOW ALL TABLES;
SELECT * FROM (SHOW memory_limit);
WITH x AS (SHOW memory_limit) FROM x;
DESCRIBE pg_settings;
SUMMARIZE pg_settings;
PIVOT pg_settings ON name IN ('threads') USING first(setting);
SELECT (SELECT setting FROM pg_settings LIMIT 1);

--- Files, network and code
-- denied
SELECT * FROM read_text('{file}');
SELECT * FROM read_blob('{file}');
FROM read_csv('{file}');
FROM read_csv_auto('{file}');
FROM main.read_json('{file}');
SELECT * FROM read_parquet('{file}');
SELECT * FROM parquet_scan('{file}');
SELECT * FROM parquet_metadata('{file}');
SELECT * FROM read_duckdb('{file}');
SELECT * FROM sniff_csv('{file}');
SELECT * FROM glob('{folder}/*');
SELECT * FROM seq_scan(1);
SELECT * FROM arrow_scan(1, 2, 3);
SELECT * FROM pandas_scan(140000000000000);
SELECT * FROM python_map_function(1);
WITH x AS (COPY (SELECT 1) TO '{folder}/out.csv') FROM x;
WITH x AS (INSERT INTO t VALUES (1, 1) RETURNING a) FROM x;
WITH x AS (UPDATE t SET a = 1 RETURNING a) FROM x;
WITH x AS (DELETE FROM t RETURNING a) FROM x;
-- execution_error
SELECT * FROM '{file}';
SELECT * FROM "{file}";
SELECT * FROM 'https://example.com/x.parquet';
DESCRIBE '{file}';
SELECT * FROM '{folder}/*.csv';
SELECT * FROM main."{file}";
SELECT (SELECT count(*) FROM '{file}');

--- Memory of DuckDB taken for a value, or a value for memory
-- denied
SELECT sum(a) EXPORT_STATE FROM t;
SELECT finalize('x'::BLOB);
SELECT combine('x'::BLOB, 'y'::BLOB);
SELECT to_aggregate_state('x'::BLOB);
SELECT remap_struct({'a': 1}, {'a': 2}, {'a': 'a'}, NULL);
SELECT __internal_decompress_string(1::HUGEINT);
SELECT variant_bytes_to_variant('x'::BLOB, 'y'::BLOB);
SELECT st_geomfromwkb('x'::BLOB);

--- Macros of the database: what they lead to counts
-- denied
SELECT peek('threads');
SELECT main.peek('threads');
SELECT peek_again('threads');
SELECT * FROM run('SELECT 42');
SELECT one_of_two('threads', 1);
-- ok
SELECT plus_one(a) FROM t;
SELECT a.plus_one() FROM t;
SELECT plus_two(a) FROM t;
SELECT * FROM first_rows(2);

--- Statements
-- denied
SET VARIABLE x = 1;
RESET threads;
PREPARE p AS SELECT 1;
EXECUTE p;
EXPLAIN SELECT 1;
PRAGMA database_list;
CALL pragma_version();
CALL duckdb_settings();
ATTACH '{folder}/other.duckdb';
LOAD json;
PIVOT t ON b USING sum(a);
CREATE MACRO f(x) AS x;
CREATE TEMP TABLE x AS SELECT 1;
COPY t TO '{folder}/out.csv';
EXPORT DATABASE '{folder}';
CREATE SECRET (TYPE http);
BEGIN;
--- What stays
-- ok
SELECT query FROM (SELECT a AS query FROM t);
SELECT setseed FROM (SELECT a AS setseed FROM t);
SELECT 'query(1)', "a" FROM t -- setseed(1);
WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3) SELECT * FROM r;
WITH RECURSIVE r(i, n) USING KEY (i) AS (SELECT 1, 1 UNION SELECT i, n + 1 FROM r WHERE n < 3) FROM r;
WITH T AS (SELECT 1 AS a) SELECT * FROM t, main.T AS u;
SELECT * FROM main_database.main.t JOIN main_database.t AS u USING (a) JOIN MAIN.T AS v USING (a);
DESCRIBE t;
SUMMARIZE t;
FROM t;
TABLE t;
SELECT sql FROM sqlite_master;
SELECT table_name, column_name FROM information_schema.columns;
SELECT date_part('year', current_date), today(), now(), current_timestamp, random(), version();
SELECT list_aggregate([1, 2], 'sum'), [x + 1 FOR x IN [1, 2] IF x > 1], list_sum([1, 2]);
SELECT string_agg(a, ',' ORDER BY a DESC), quantile_cont(a, 0.5), mode() WITHIN GROUP (ORDER BY b) FROM t;
PIVOT t ON b IN (0, 1) USING sum(a);
UNPIVOT t ON a, b;
SELECT * FROM range(3) AS r(i), generate_series(1, 2) AS s(j), unnest([1, 2]) AS u(k);
SELECT a FROM t QUALIFY row_number() OVER (PARTITION BY b ORDER BY a) = 1;
SELECT json_extract('{"a": 1}', '$.a'), '{"a": 1}'::JSON ->> 'a';
SELECT * FROM t AS x ASOF JOIN t AS y ON x.a >= y.a POSITIONAL JOIN t AS z;
SELECT a::DECIMAL(9, 2), try_cast('x' AS INTEGER), a::VARCHAR COLLATE NOCASE FROM t;
