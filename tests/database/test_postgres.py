"""PostgreSQL beyond the contract of all engines: schemas, places, passwords, and what fails."""

from __future__ import annotations

import contextlib
import copy
import pickle
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from sense_trl.cli.main import main
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.location import ServerDatabase, hide_passwords, locate
from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.database.postgres_session import NameCheck
from sense_trl.database.profile import read_rows
from sense_trl.errors import DatabaseError, InputError
from sense_trl.prompts import PromptStyle
from sense_trl.prompts.value_index import ValueIndex, build_value_index
from sense_trl.prompts.writer import PromptWriter
from sense_trl.schema import check_tables, format_schema, get_schema
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier, VerificationRequest

SHOP = """
CREATE SCHEMA sales;
CREATE TYPE mood AS ENUM ('happy', 'so so', 'can''t say');
CREATE DOMAIN email AS varchar(80) CHECK (value LIKE '%@%');
CREATE TABLE "Customer" (id int PRIMARY KEY, "fullName" text NOT NULL, mail email, mood mood, "user" text);
COMMENT ON TABLE "Customer" IS 'who buys';
COMMENT ON COLUMN "Customer".mood IS 'as told';
CREATE TABLE item (shop int, number int, tags text[], price numeric(8,2), PRIMARY KEY (shop, number));
CREATE TABLE sales.bill (id int, customer_id int REFERENCES "Customer", shop int, number int, day date,
    FOREIGN KEY (shop, number) REFERENCES item) PARTITION BY RANGE (day);
CREATE TABLE sales.bill_2025 PARTITION OF sales.bill FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE VIEW sales.recent AS SELECT * FROM sales.bill;
CREATE MATERIALIZED VIEW totals AS SELECT shop, count(*) AS bills FROM sales.bill GROUP BY shop;
CREATE TABLE sales.item (forged int);
CREATE TABLE hidden (x int);
INSERT INTO "Customer" VALUES (1, 'Ann Lee', 'ann@x.org', 'happy', 'ann'), (2, 'Joe', NULL, 'so so', 'joe');
INSERT INTO item VALUES (1, 1, '{red,big}', 9.50);
INSERT INTO sales.bill VALUES (1, 1, 1, 1, '2025-05-01');
"""
GRANTS = """
GRANT USAGE ON SCHEMA sales TO {role};
GRANT SELECT ON "Customer", item, totals, sales.bill, sales.recent, sales.item TO {role};
"""


@pytest.fixture(scope="module")
def shop(postgres_server: PostgresServer) -> str:
    """The URL of a role that reads a shop."""
    name = postgres_server.create_database(SHOP)
    dsn = postgres_server.dsn(name, *postgres_server.create_role(GRANTS, database=name))
    return f"{dsn}&schemas=public,sales"


def test_a_copy_of_an_engine_does_what_the_original_does(shop: str) -> None:
    with PostgresEngine(shop) as engine:
        expected = engine.execute("SELECT id FROM bill").rows
        assert expected == ((1,),)
        for found in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
            assert found.execute("SELECT id FROM bill").rows == expected
            found.close()
        assert engine.execute("SELECT id FROM bill").rows == expected


def test_the_schema_is_that_of_the_catalog(shop: str, caplog: pytest.LogCaptureFixture) -> None:
    with PostgresEngine(shop) as engine:
        schema = get_schema(engine, "shop")
    tables = {table.name: table for table in schema.tables}
    # Neither a partition, nor what the role may not read, nor the second table of one name.
    assert list(tables) == ["Customer", "item", "bill", "recent", "totals"]
    assert "sales.item" in caplog.text
    assert [table.is_view for table in schema.tables] == [False, False, False, True, False]
    customer = {column.name: column for column in tables["Customer"].columns}
    assert tables["Customer"].comment == "who buys"
    assert customer["mail"].type == "character varying(80)"
    assert customer["mood"].comment == "as told; one of 'happy', 'so so', 'can''t say'"
    assert customer["fullName"].not_null and customer["id"].primary_key == 1
    assert [column.primary_key for column in tables["item"].columns] == [1, 2, 0, 0]
    keys = [
        (k.columns, k.referenced_table, k.referenced_columns) for k in tables["bill"].foreign_keys
    ]
    assert keys == [
        (("customer_id",), "Customer", ("id",)),
        (("shop", "number"), "item", ("shop", "number")),
    ]


def test_prompts_are_in_postgresql(shop: str) -> None:
    style = PromptStyle(schema_style="ddl", num_values=2, descriptions=True, num_matched_values=2)
    with DatabaseCatalog.from_path(shop) as catalog, PromptWriter(catalog, style) as writer:
        [db_id] = catalog.db_ids
        messages = writer.get_messages(db_id, "Is Ann Lee happy?")
    text = "\n".join(message["content"] for message in messages)
    assert "PostgreSQL" in text
    assert 'CREATE TABLE "Customer" (  -- who buys' in text
    assert '"fullName" text NOT NULL' in text and '"user" text' in text
    assert "one of 'happy', 'so so', 'can''t say'" in text
    assert """"Customer"."fullName" = 'Ann Lee'""" in text
    assert 'REFERENCES "Customer" (id)' in text
    assert "customer_id integer" in text
    with PostgresEngine(shop) as engine:
        compact = format_schema(get_schema(engine, "shop"))
    assert 'bill.customer_id = "Customer".id' in compact


def test_texts_and_days_are_indexed(postgres_server: PostgresServer, tmp_path: Path) -> None:
    name = postgres_server.create_database(
        "CREATE TYPE mood AS ENUM ('calm'); CREATE TABLE log (kind varchar(9), mood mood, day date,"
        " at timestamptz, tags text[], doc jsonb, who uuid);"
        "INSERT INTO log VALUES ('start', 'calm', '2025-05-01', '2025-05-01', '{red}', '[\"blue\"]',"
        " '12345678-1234-1234-1234-123456789012')"
    )
    role = postgres_server.create_role("GRANT SELECT ON log TO {role}", database=name)
    with PostgresEngine(postgres_server.dsn(name, *role)) as engine:
        build_value_index(engine, tmp_path / "index")
    with ValueIndex(tmp_path / "index") as index:
        assert len(index) == 3
        found = index.find("is a calm start on 2025-05-01 red or blue?", max_matches=9)
    assert sorted(match.value for match in found) == ["2025-05-01", "calm", "start"]


def test_rows_of_a_large_table_are_a_sample(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database(
        "CREATE TABLE many AS SELECT x, repeat('y', 900) AS y FROM generate_series(1, 30000) x"
    )
    role = postgres_server.create_role("GRANT SELECT ON many TO {role}", database=name)
    with PostgresEngine(postgres_server.dsn(name, *role)) as engine:
        [table] = engine.get_tables()
        rows, is_complete = read_rows(engine, table)
        assert len(rows) == 2000 and not is_complete
        # From all over the table, and the same again.
        numbers = [row[0] for row in rows]
        assert min(numbers) < 2000 and max(numbers) > 28000
        assert read_rows(engine, table)[0] == rows


def test_verdicts_of_workers_are_those_of_the_calling_process(shop: str) -> None:
    golds = [
        'SELECT "fullName" FROM "Customer"',
        "SELECT sum(price), count(*) FROM item",
        "SELECT tags FROM item",
    ]
    predictions = [
        *golds,
        'SELECT mail FROM "Customer"',
        "SELECT nope",
        "DROP TABLE item",
        "SELECT pg_sleep(9)",
    ]
    found = []
    for num_workers in (0, 2):
        with (
            DatabaseCatalog.from_path(shop, limits=ExecutionLimits(timeout_s=5)) as catalog,
            SQLVerifier(catalog, num_workers=num_workers) as verifier,
        ):
            [db_id] = catalog.db_ids
            requests = [VerificationRequest(db_id, p, g) for p in predictions for g in golds]
            found.append([(v.verdict, v.reason) for v in verifier.verify(requests)])
    assert found[0] == found[1]
    verdicts = [str(verdict) for verdict, _ in found[0]]
    assert [verdicts[0], verdicts[4], verdicts[8]] == ["correct"] * 3
    assert verdicts.count("correct") == 3 and verdicts.count("wrong") == 18


def test_every_database_or_schema_of_a_server_is_one(postgres_server: PostgresServer) -> None:
    prefix = "pets_of"
    names = [
        postgres_server.create_database(
            f"CREATE TABLE pet AS SELECT '{who}' AS owner", prefix=prefix
        )
        for who in ("ann", "joe")
    ]
    role, password = postgres_server.create_role()
    for name in names:
        with postgres_server.connect(name) as connection:
            connection.execute(f"GRANT SELECT ON pet TO {role}")
    url = postgres_server.dsn(prefix + "_{db_id}", role, password)
    with DatabaseCatalog.from_path(url) as catalog:
        assert list(catalog.db_ids) == sorted(name.removeprefix(f"{prefix}_") for name in names)
        owners = {
            catalog.engine(d).execute("SELECT owner FROM pet").rows[0][0] for d in catalog.db_ids
        }
        assert owners == {"ann", "joe"}
    script = "CREATE SCHEMA cat; CREATE SCHEMA dog; CREATE TABLE cat.pet AS SELECT 'Tom' AS n; CREATE TABLE dog.pet AS SELECT 'Rex' AS n;"
    name = postgres_server.create_database(script)
    grants = "GRANT USAGE ON SCHEMA cat, dog TO {role}; GRANT SELECT ON cat.pet, dog.pet TO {role};"
    own = postgres_server.create_role(grants, database=name)
    with DatabaseCatalog.from_path(postgres_server.dsn(name, *own) + "&schemas={db_id}") as catalog:
        assert {"cat", "dog"} <= {*catalog.db_ids}
        rows = [catalog.engine(d).execute("SELECT n FROM pet").rows for d in ("cat", "dog")]
        assert rows == [(("Tom",),), (("Rex",),)]


def test_a_suite_is_refused_with_the_reason(shop: str) -> None:
    with (
        DatabaseCatalog.from_path(shop) as catalog,
        pytest.raises(InputError, match="on a PostgreSQL server"),
    ):
        SuiteVerifier(catalog)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pass@h/d", "postgresql://u@h/d"),
        ("postgres://u:p%40ss@h:5433/d?sslmode=require", "postgresql://u@h:5433/d?sslmode=require"),
        ("postgresql://u@h/d?password=pass&schemas=a,b", "postgresql://u@h/d?schemas=a,b"),
        ("postgresql://u:p@ss@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=/run/pg"),
        # What libpq takes of two.
        ("postgresql://u:pass@h/other?dbname=d&x=1", "postgresql://u@h/d?x=1"),
        ("postgresql://u:other@h?dbname=d&password=pass", "postgresql://u@h/d"),
    ],
)
def test_a_place_shows_no_password(url: str, shown: str) -> None:
    place = locate(url)
    assert isinstance(place, ServerDatabase)
    assert str(place) == shown and locate(str(place)) == place
    assert place.stem == "d"
    assert "ss" not in repr(place).replace("sslmode", "").replace("postgres", "").replace(
        "ServerDatabase", ""
    )


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:hunter2/d",
        "postgresql://u:hunter2",
        "postgresql://u:hunter2:5432/d",
        "postgresql://u:hunter2?x=1@h/d",
        "postgresql://u:12?x=hunter2@h/d",
        "postgresql://u@h/d?PASSWORD=hunter2",
        "postgresql://u@h/d?pass=hunter2",
        "POSTGRESQL://u:hunter2@h/d",
        " postgresql://u:hunter2@h/d",
        "postgresql:/u:hunter2@h/d",
        "postgresql+psycopg://u:hunter2@h/d",
        "jdbc:postgresql://h/d?user=u&password=hunter2",
        "mysql://u:hunter2@h/d",
        "host=h user=u password=hunter2 dbname=d",
        "dbname = d password = hunter2",
        "postgresql://hunter2",
        "postgresql://u:hunter2@h",
        "postgresql://u:123hunter2/d",
        "reader:hunter2@h/d",
        "reader:a/hunter2@h/d",
    ],
)
def test_what_may_hold_a_password_is_refused_unseen(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="`database` is") as caught:
        locate(text)
    assert "hunter2" not in str(caught.value)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": "1", "question": "Who?", "gold_sql": "SELECT 1"}\n')
    assert main(["verify", "--database", text, "--questions", str(questions), str(questions)]) == 2
    said = capsys.readouterr()
    assert "hunter2" not in said.err + said.out


@pytest.mark.parametrize(
    "text", ["data/user=1/x.sqlite", "C:/data/x@2.sqlite", "a:b.sqlite", "my password.sqlite"]
)
def test_a_path_is_no_url(text: str) -> None:
    assert locate(text) == Path(text)


def test_a_file_that_looks_like_a_url_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("u:p@h.sqlite").touch()
    assert locate("u:p@h.sqlite") == Path("u:p@h.sqlite")


def test_a_command_line_is_shown_without_passwords() -> None:
    url = "postgresql://u:hunter2@h/d"
    words = ["ask", "--database", url, f"--database={url}", "-v", "--x=y:z@w", "Why is a:b@c so?"]
    shown = [word.replace(":hunter2", "") for word in words]
    assert hide_passwords(words) == shown


def test_no_message_about_flags_shows_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--databse", "postgresql://u:hunter2@h/d"], ["--x=postgres://u:hun/ter2@h/d"]):
        with contextlib.suppress(SystemExit):
            assert main(["ask", "Who?", *words]) == 2
        said = capsys.readouterr().err
        assert "error" in said and "hun" not in said, said


@pytest.mark.parametrize("hosts", ["h", "h:1", "h:1,g:2", "[::1]", "[::1]:5432,h", "", ":5432"])
def test_hosts_and_ports_are_those_of_libpq(hosts: str) -> None:
    assert str(locate(f"postgresql://u:p@{hosts}/d")) == f"postgresql://u@{hosts}/d"


def test_a_plus_is_a_plus() -> None:
    place = locate("postgresql://u@h/d?password=a+b%20c&application_name=x+y")
    assert isinstance(place, ServerDatabase)
    assert place.secrets == {"password": "a+b c"}
    assert place.conninfo == "postgresql://u@h/d?application_name=x%2By"


@pytest.mark.parametrize(
    "url", ["postgresql://u:pa/ss@h/d", "postgresql://u:pa#ss@h/d", "postgresql://u:pa?ss@h/d"]
)
def test_a_password_that_is_not_quoted_is_refused_unseen(url: str) -> None:
    with pytest.raises(InputError, match="%40") as caught:
        locate(url)
    assert "ss@" not in str(caught.value) and "pa" not in str(caught.value).replace(
        "part", ""
    ).replace("password", "")


def test_names_are_found_wherever_they_stand() -> None:
    check = NameCheck({"nextval", "lo_lseek64", "My Function"})
    for text in (
        "NEXTVAL('x')",
        '"nextval"(1)',
        "1e5nextval",
        "$a$b$a$nextval",
        "'nextval'",
        "énextval",
        "9lo_lseek64",
        '"My Function"()',
    ):
        assert check.find(text), text
    for text in ("nextvalue", "my_nextval", "lo_lseek641", "next val", "U&'x'"):
        assert check.find(text) is None, text
    assert NameCheck({"f" * 63}).find("f" * 70) == NameCheck({"f" * 63}).find("1e5" + "f" * 63)
    assert check.find('u&"n\\0065xtval"()')


def test_what_fails_is_said_in_one_paragraph(
    postgres_server: PostgresServer,
    shop: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    questions = str(tmp_path / "questions.jsonl")
    Path(questions).write_text(
        '{"question_id": "1", "question": "Who?", "gold_sql": "SELECT 1", "sql": "SELECT 1"}\n'
    )
    place = locate(shop)
    assert isinstance(place, ServerDatabase)
    name = place.stem
    role, password = postgres_server.create_role("ALTER ROLE {role} CONNECTION LIMIT 1")
    mine = postgres_server.dsn(name, role, password)
    with PostgresEngine(mine) as engine:
        with pytest.raises(DatabaseError, match="has no tables that the role may read"):
            check_tables(get_schema(engine), engine.path)
        with pytest.raises(DatabaseError, match=r"too many connections.*num_workers"):
            PostgresEngine(mine)
        with pytest.raises(DatabaseError, match=r"may use no schema 'nope'.*GRANT USAGE"):
            PostgresEngine(f"{shop}&schemas=nope")
    for url, words in (
        (mine.replace(password, "wrong-secret"), "password authentication failed"),
        (postgres_server.dsn("no_such_database", role, password), "does not exist"),
        ("postgresql://u:wrong-secret@127.0.0.1:1/d", "Is the server running"),
        ("postgresql://u:wrong-secret@127.0.0.1:1", "names no database"),
    ):
        assert main(["verify", "--database", url, "--questions", questions, questions]) == 2
        said = capsys.readouterr()
        assert words in " ".join(said.err.split()), said.err
        assert "Traceback" not in said.err and said.err.strip().count("\n\n") == 0
        assert "wrong-secret" not in said.err + said.out and password not in said.err + said.out


def test_queries_are_explored_with_names_in_quotes(shop: str, tmp_path: Path) -> None:
    output = str(tmp_path / "explored")
    flags = ["--num_per_database", "6", "--num_workers", "0"]
    assert main(["synth", "explore", "--database", shop, "--output", output, *flags]) == 0
    text = (tmp_path / "explored" / "questions.jsonl").read_text()
    assert '\\"Customer\\"' in text
