"""The server that the tests of PostgreSQL run against."""

from __future__ import annotations

import psycopg
import pytest
from postgres_server import PostgresServer


def test_a_role_reaches_its_database_by_password_only(postgres_server: PostgresServer) -> None:
    database = postgres_server.create_database("CREATE TABLE t AS SELECT 7 AS x")
    role, password = postgres_server.create_role("GRANT SELECT ON t TO {role}", database=database)
    with psycopg.connect(postgres_server.dsn(database, role, password)) as connection:
        assert connection.execute("SELECT x FROM t").fetchall() == [(7,)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.dsn(database, role, "wrong"))
