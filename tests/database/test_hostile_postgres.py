"""SQL that a model might write to do harm on a PostgreSQL server: nothing of it does any."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from postgres_server import PostgresServer

from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.location import ServerDatabase, locate
from sense_trl.database.postgres_confinement import find_gaps
from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.database.postgres_session import connect

LIMITS = ExecutionLimits(timeout_s=0.3, max_rows=1000)
SCRIPT = """
CREATE TABLE account (id int PRIMARY KEY, owner text, balance numeric);
INSERT INTO account VALUES (1, 'Ann', 10), (2, 'Joe', 20);
CREATE TABLE secret (word text);
INSERT INTO secret VALUES ('swordfish');
CREATE SEQUENCE counter;
GRANT USAGE ON SEQUENCE counter TO PUBLIC;
CREATE FUNCTION drain() RETURNS int LANGUAGE sql AS 'UPDATE account SET balance = 0 RETURNING 1';
CREATE FUNCTION drain_as_owner() RETURNS int LANGUAGE sql SECURITY DEFINER AS
    'UPDATE account SET balance = 0 RETURNING 1';
"""
# Statements that write, or do something else than read.
STATEMENTS = """
INSERT INTO account VALUES (3, 'Eve', 99)
UPDATE account SET balance = 0
DELETE FROM account
TRUNCATE account
MERGE INTO account a USING account b ON a.id = b.id WHEN MATCHED THEN DELETE
DROP TABLE account
DROP SCHEMA public CASCADE
ALTER TABLE account ADD COLUMN x int
ALTER ROLE CURRENT_USER SUPERUSER
ALTER SYSTEM SET work_mem = '1GB'
CREATE TABLE forged (x int)
CREATE TEMP TABLE account (id int, owner text, balance numeric)
CREATE TEMP VIEW account AS SELECT 1 AS id
CREATE TEMPORARY SEQUENCE s
CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE ROLE eve SUPERUSER
CREATE EXTENSION dblink
CREATE SCHEMA mine
CREATE DATABASE mine
GRANT ALL ON account TO PUBLIC
COMMENT ON TABLE account IS 'mine'
SET statement_timeout = 0
SET SESSION AUTHORIZATION postgres
SET ROLE postgres
SET TRANSACTION READ WRITE
SET search_path = pg_temp
RESET ALL
DISCARD ALL
BEGIN
COMMIT
ROLLBACK
SAVEPOINT s
PREPARE p AS DELETE FROM account
EXECUTE p
DEALLOCATE ALL
DECLARE d CURSOR WITH HOLD FOR SELECT 1
FETCH ALL FROM c
CLOSE c
CLOSE ALL
LISTEN news
NOTIFY news, 'x'
LOCK TABLE account IN ACCESS EXCLUSIVE MODE
COPY account TO STDOUT
COPY account FROM STDIN
COPY account TO '/tmp/account'
COPY account TO PROGRAM 'touch /tmp/owned'
DO $$ BEGIN DELETE FROM account; END $$
CALL nothing()
VACUUM account
ANALYZE account
CHECKPOINT
LOAD 'auto_explain'
EXPLAIN ANALYZE DELETE FROM account
SELECT * INTO forged FROM account
CREATE TABLE forged AS SELECT * FROM account
SELECT 1; DELETE FROM account
SELECT 1; COMMIT; DELETE FROM account
SELECT 1); DELETE FROM account; --
WITH gone AS (DELETE FROM account RETURNING *) SELECT * FROM gone
WITH paid AS (UPDATE account SET balance = 0 RETURNING *) SELECT * FROM paid
WITH made AS (INSERT INTO account VALUES (9, 'x', 1) RETURNING *) SELECT * FROM made
SELECT * FROM account FOR UPDATE
SELECT * FROM account FOR SHARE
SELECT drain()
SELECT drain_as_owner()
SELECT "drain_as_owner"()
SELECT public . drain_as_owner /* now */ ()
SELECT U&"drain\\005Fas_owner"()
SELECT u&"dr!0061in_as_owner" UESCAPE '!' ()
SELECT a.drain_as_owner FROM account AS a
SELECT nextval('counter')
SELECT setval('counter', 100)
SELECT set_config('statement_timeout', '0', false)
SELECT set_config('transaction_read_only', 'off', false)
SELECT set_config('search_path', 'pg_temp', false), pg_sleep(0)
SELECT pg_advisory_lock(1)
SELECT pg_try_advisory_lock_shared(7) FROM account
SELECT lo_create(4711)
SELECT lo_from_bytea(0, 'x')
SELECT lo_import('/etc/passwd')
SELECT lo_export(1, '/tmp/owned')
SELECT lo_unlink(oid) FROM pg_largeobject_metadata
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
SELECT pg_read_file('/etc/passwd')
SELECT pg_ls_dir('.')
SELECT pg_stat_reset()
SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000000))
SELECT pg_notify('news', 'x')
SELECT pg_export_snapshot()
SELECT pg_switch_wal()
SELECT query_to_xml('DELETE FROM account', true, true, '')
SELECT query_to_xml('SELECT pg_sleep(100)', true, true, '')
SELECT * FROM ts_stat('SELECT pg_advisory_lock(1)::text::tsvector')
SELECT dblink('dbname=postgres', 'DELETE FROM account')
SELECT * FROM secret
SELECT passwd FROM pg_shadow
SELECT rolpassword FROM pg_authid
""".strip().splitlines()
# Queries that never end, or want more than there is.
GREEDY = """
SELECT pg_sleep(100)
SELECT pg_sleep_for('1 hour')
WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r
WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT * FROM r
SELECT count(*) FROM generate_series(1, 1e12)
SELECT * FROM generate_series(1, 1000000000)
SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b, generate_series(1, 9) c
SELECT repeat('x', 500000000)
SELECT repeat('x', 2000000000)
SELECT string_agg(repeat('x', 1000000), '') FROM generate_series(1, 900)
SELECT jsonb_agg(x) FROM generate_series(1, 100000000) x
SELECT array_agg(x) FROM generate_series(1, 100000000) x
SELECT x FROM generate_series(1, 100000000) x ORDER BY random()
SELECT DISTINCT x FROM generate_series(1, 100000000) x
SELECT repeat('a', 30) ~ '(a|aa)+$b'
SELECT regexp_replace(repeat('a', 100000), '(a*)*b', 'x')
SELECT 9999999999::numeric ^ 99999
SELECT factorial(100000)
SELECT 2::numeric ^ 100000000
SELECT lpad('x', 100000000, 'y') FROM generate_series(1, 1000)
SELECT xmlparse(document '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>')
SELECT * FROM pg_class a, pg_class b, pg_class c, pg_attribute d ORDER BY random()
""".strip().splitlines()
GREEDY += [
    "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
    "SELECT " + " + ".join(["1"] * 50_000),
    "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(30_000))) + ")",
    "SELECT '" + "x" * 199_000 + "'",
    "SELECT " + "-" * 100_000,
]


def make_database(server: PostgresServer, *, confined: bool) -> ServerDatabase:
    """A database whose role may read one table, and nothing else if it is confined."""
    name = server.create_database(SCRIPT)
    role, password = server.create_role("GRANT SELECT ON account TO {role}", database=name)
    location = locate(server.dsn(name, role, password))
    assert isinstance(location, ServerDatabase)
    if confined:
        statements = [gap.sql for gap in find_gaps(location) if gap.sql]
        with server.connect(name) as connection:
            for statement in statements:
                connection.execute(statement)
        assert not any(gap.text for gap in find_gaps(location))
    return location


@pytest.fixture(scope="module", params=["confined", "may only select"])
def hostile(
    request: pytest.FixtureRequest, postgres_server: PostgresServer
) -> Iterator[tuple[PostgresServer, PostgresEngine]]:
    location = make_database(postgres_server, confined=request.param == "confined")
    with PostgresEngine(location, limits=LIMITS) as engine:
        yield postgres_server, engine


def state_of(server: PostgresServer, database: str) -> str:
    """All of a database that a query could harm, as a superuser sees it."""
    queries = (
        "SELECT * FROM account ORDER BY id",
        "SELECT * FROM secret",
        "SELECT last_value, is_called FROM counter",
        "SELECT oid, relname, relacl::text FROM pg_class ORDER BY oid",
        "SELECT oid FROM pg_largeobject_metadata",
        "SELECT oid, proname, proacl::text FROM pg_proc WHERE oid >= 16384 ORDER BY oid",
        "SELECT nspname, nspacl::text FROM pg_namespace ORDER BY 1",
        "SELECT extname FROM pg_extension",
    )
    with server.connect(database) as connection:
        rows = [connection.execute(query).fetchall() for query in queries]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def session_of(server: PostgresServer, engine: PostgresEngine) -> tuple[object, ...]:
    """What a query could leave behind in a session, read past the engine."""
    session = engine._get_session()
    ask = session.connection.execute
    settings = ask(
        "SELECT name, setting FROM pg_settings WHERE source = 'session' "
        "AND name <> 'application_name' ORDER BY 1"
    ).fetchall()
    with server.connect() as connection:
        locks = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory'",
            (session.pgconn.backend_pid,),
        ).fetchone()
    prepared = ask("SELECT name FROM pg_prepared_statements").fetchall()
    cursors = ask("SELECT name FROM pg_cursors WHERE name <> ''").fetchall()
    channels = ask("SELECT * FROM pg_listening_channels()").fetchall()
    path = ask("SELECT current_schemas(true)::text, current_user::text").fetchone()
    return settings, locks, prepared, cursors, channels, path


def test_there_are_enough_of_them() -> None:
    assert len({*STATEMENTS, *GREEDY}) >= 120


def test_nothing_harms_the_database_or_poisons_the_session(
    hostile: tuple[PostgresServer, PostgresEngine],
) -> None:
    server, engine = hostile
    neighbour = connect(engine.path)
    before, session_before = state_of(server, engine.path.stem), session_of(server, engine)
    for sql in STATEMENTS:
        started = time.perf_counter()
        result = engine.execute(sql)
        assert time.perf_counter() - started < LIMITS.timeout_s + 0.5, sql
        assert not result.ok, sql
        assert session_of(server, engine) == session_before, sql
    assert state_of(server, engine.path.stem) == before
    rows = engine.execute("SELECT owner, balance FROM account ORDER BY id").rows
    assert repr(rows) == "(('Ann', Decimal('10')), ('Joe', Decimal('20')))"
    # A session of the same role has not been ended, nor does it wait for a lock.
    assert neighbour.connection.execute("SELECT count(*) FROM account").fetchone() == (2,)
    neighbour.close()


def test_nothing_outlives_its_limit(hostile: tuple[PostgresServer, PostgresEngine]) -> None:
    server, engine = hostile
    late = []
    session_before = session_of(server, engine)
    for sql in GREEDY:
        started = time.perf_counter()
        engine.execute(sql)
        if (elapsed_s := time.perf_counter() - started) > LIMITS.timeout_s + 0.5:
            late.append((sql[:80], elapsed_s))
        assert session_of(server, engine) == session_before, sql[:80]
    assert not late
    with server.connect(engine.path.stem) as connection:
        running = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '^FETCH' "
            "AND datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert running == (0,)


def test_a_name_in_a_text_is_enough_to_be_refused(
    hostile: tuple[PostgresServer, PostgresEngine],
) -> None:
    _, engine = hostile
    is_callable = "drain" in engine._get_session().callable
    assert engine.execute("SELECT 'drain' AS word").ok != is_callable
    for sql in ("SELECT 1e5drain()", "SELECT $a$x$a$drain()", "SELECT drain()", 'SELECT "drain"()'):
        assert engine.execute(sql).status in ("denied", "syntax_error")
    assert engine.execute("SELECT 'draining' AS drained").ok


def test_a_superuser_is_refused_unless_told_otherwise(postgres_server: PostgresServer) -> None:
    from sense_trl.errors import DatabaseError

    dsn = postgres_server.dsn(postgres_server.create_database(SCRIPT))
    with pytest.raises(DatabaseError, match="is a superuser") as caught:
        PostgresEngine(dsn)
    assert "doctor --database" in str(caught.value)
    joined = dsn + ("&" if "?" in dsn else "?") + "superuser=allow"
    for engine in (PostgresEngine(dsn, allow_superuser=True), PostgresEngine(joined)):
        with engine:
            assert engine.execute("SELECT count(*) FROM secret").rows == ((1,),)
            for sql in (
                "SELECT pg_read_file('PG_VERSION')",
                "SELECT lo_create(1)",
                "SELECT drain()",
            ):
                assert engine.execute(sql).status == "denied", sql


def test_a_session_that_is_ended_is_replaced(
    hostile: tuple[PostgresServer, PostgresEngine],
) -> None:
    server, engine = hostile
    assert engine.execute("SELECT 1").ok
    tables = engine.get_tables()

    def end_session() -> None:
        with server.connect() as connection:
            end = "SELECT pg_terminate_backend(%s, 5000)"
            assert connection.execute(end, (pid_of(engine),)).fetchone()

    end_session()
    assert engine.get_tables() == tables
    end_session()
    assert engine.execute("SELECT 2").rows == ((2,),)


@pytest.fixture(scope="module")
def own_engine(
    postgres_server: PostgresServer,
) -> Iterator[tuple[PostgresServer, PostgresEngine]]:
    if not postgres_server.is_own:
        pytest.skip("a server that is not ours is not crashed")
    server = PostgresServer()
    location = make_database(server, confined=False)
    with PostgresEngine(location, limits=ExecutionLimits(timeout_s=0.5)) as engine:
        yield server, engine
    server.close()


def pid_of(engine: PostgresEngine) -> int:
    return int(engine._get_session().pgconn.backend_pid)


def test_a_server_that_hangs_does_not_hold_the_client(
    own_engine: tuple[PostgresServer, PostgresEngine],
) -> None:
    _, engine = own_engine
    pid = pid_of(engine)
    timers = [
        threading.Timer(delay_s, os.kill, (pid, number))
        for delay_s, number in ((0.2, signal.SIGSTOP), (5, signal.SIGCONT))
    ]
    for timer in timers:
        timer.start()
    started = time.perf_counter()
    result = engine.execute("SELECT count(*) FROM generate_series(1, 1e12)")
    elapsed_s = time.perf_counter() - started
    timers[0].join()
    timers[1].cancel()
    os.kill(pid, signal.SIGCONT)
    assert result.status == "timeout" and elapsed_s < 3
    assert engine.execute("SELECT 1").ok


def test_a_crash_is_the_doing_of_one_query_alone(
    own_engine: tuple[PostgresServer, PostgresEngine],
) -> None:
    _, engine = own_engine
    endless, long = (
        f"SELECT count(*) FROM generate_series(1, {rows})" for rows in ("1e12", "3000000")
    )
    results = []

    def run_beside() -> None:
        with PostgresEngine(engine.path, limits=ExecutionLimits(timeout_s=60)) as neighbour:
            neighbour.execute("SELECT 1")
            is_there.set()
            results.append(neighbour.execute(long))

    is_there = threading.Event()
    beside = threading.Thread(target=run_beside)
    beside.start()
    is_there.wait()
    # As the system does with a process for which it has no memory.
    killer = threading.Timer(0.2, os.kill, (pid_of(engine), signal.SIGKILL))
    killer.start()
    guilty = engine.execute(endless, limits=ExecutionLimits(timeout_s=60))
    beside.join()
    assert (guilty.status, guilty.exceeded) == ("too_large", "memory")
    assert results[0].rows == ((3_000_000,),)
    assert engine.execute("SELECT count(*) FROM account").rows == ((2,),)


def test_rights_are_found_by_trying(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database(SCRIPT)
    role, password = postgres_server.create_role(
        "GRANT SELECT, INSERT ON account TO {role}; GRANT CREATE ON SCHEMA public TO {role};"
        "GRANT pg_read_server_files TO {role}; ALTER ROLE {role} CREATEDB;"
        # As the one of the extension tablefunc.
        "CREATE FUNCTION crosstab(text) RETURNS int LANGUAGE plpgsql STABLE AS "
        "'BEGIN EXECUTE $1; RETURN 1; END'",
        database=name,
    )
    location = locate(postgres_server.dsn(name, role, password))
    assert isinstance(location, ServerDatabase)
    gaps = {gap.name: gap for gap in find_gaps(location)}
    assert "CREATEDB" in gaps["role"].text and "pg_read_server_files" in gaps["role"].text
    assert gaps["role"].is_grave
    assert "account" in gaps["writing"].text and "counter" in gaps["writing"].text
    assert "public" in gaps["creating"].text
    assert "crosstab" in gaps["SQL in text"].text
    assert " public.account " in gaps["writing"].sql
    with PostgresEngine(location, limits=LIMITS) as engine:
        hidden = "SELECT crosstab('SELECT pg_adv' || 'isory_lock(1)')"
        assert engine.execute(hidden).status == "denied"
    with postgres_server.connect(name) as connection:
        for gap in gaps.values():
            if gap.sql:
                connection.execute(gap.sql)
    assert not [gap for gap in find_gaps(location) if gap.text]
    with psycopg.connect(postgres_server.dsn(name, role, password)) as own:
        assert own.execute("SELECT count(*) FROM account").fetchone() == (2,)
