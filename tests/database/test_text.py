"""Text that is not UTF-8 stays apart from other text, everywhere that it can reach."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.cli.terminal import make_visible
from sense_trl.database import DatabaseCatalog, SQLiteEngine
from sense_trl.database.digest import DigestBuilder
from sense_trl.database.fuzzing import DatabaseFuzzer
from sense_trl.database.profile import profile_database
from sense_trl.database.text import decode_text, drop_bad_bytes, encode_text, show_text
from sense_trl.database.worker import IsolatedEngine
from sense_trl.evaluation.evaluate import evaluate_sql
from sense_trl.evaluation.previews import preview_results
from sense_trl.questions import Question
from sense_trl.schema import get_schema
from sense_trl.schema.foreign_keys import infer_foreign_keys
from sense_trl.schema.formats import SCHEMA_STYLES, format_schema
from sense_trl.verification.comparison import Reason
from sense_trl.verification.judging import verify_sql
from sense_trl.verification.values import values_equal
from sense_trl.verification.verifier import SQLVerifier, VerificationRequest

# "Привет" and "Россия" in cp1251, and "é", "è" in Latin-1.
CYRILLIC = (b"\xcf\xf0\xe8\xe2\xe5\xf2", b"\xd0\xee\xf1\xf1\xe8\xff")
ACCENTS = (b"\xe9", b"\xe8")


def _as_text(*values: bytes) -> str:
    return ", ".join(f"CAST(x'{value.hex()}' AS TEXT)" for value in values)


@pytest.fixture
def path(fresh_db: Callable[..., Path]) -> Path:
    """Tables with names and values that are not UTF-8."""
    rows = ", ".join(
        f"({number}, {_as_text(value)}, {number * 10})"
        for number, value in enumerate((*CYRILLIC, *ACCENTS), start=1)
    )
    path = fresh_db(
        f"""
        CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT, size INT);
        INSERT INTO word VALUES {rows};
        CREATE TABLE t (id INTEGER PRIMARY KEY, nXme TEXT, other INT);
        INSERT INTO t SELECT * FROM word;
        CREATE TABLE bXd (id INTEGER PRIMARY KEY, word INT REFERENCES word (id));
        INSERT INTO bXd VALUES (1, 2);
        CREATE TABLE child (id INT, bad INT REFERENCES bXd (id), word INT REFERENCES word (id));
        INSERT INTO child VALUES (1, 1, 3);
        """
    )
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for name, tbl_name, sql, rowid in connection.execute(
            "SELECT CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB), rowid"
            " FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall():
            bad = [
                each.replace(b"nXme", b"n\xe4me").replace(b"bXd", b"b\xe4d")
                for each in (name, tbl_name, sql)
            ]
            connection.execute(
                "UPDATE sqlite_master SET name = CAST(? AS TEXT), tbl_name = CAST(? AS TEXT),"
                " sql = CAST(? AS TEXT) WHERE rowid = ?",
                (*bad, rowid),
            )
    connection.close()
    return path


@settings(max_examples=100)
@given(st.binary(max_size=8), st.binary(max_size=8))
def test_any_bytes_are_read_apart_and_lead_back(left: bytes, right: bytes) -> None:
    texts = decode_text(left), decode_text(right)
    assert (encode_text(texts[0]), encode_text(texts[1])) == (left, right)
    assert values_equal(*texts) is (left == right)
    assert drop_bad_bytes(texts[0]) == left.decode(errors="ignore")
    show_text(texts[0]).encode()
    digests = []
    for text in texts:
        builder = DigestBuilder(1)
        builder.add([(text,)])
        digests.append(builder.finish())
    assert (digests[0] == digests[1]) is (left == right)


@settings(max_examples=100)
@given(st.text(st.characters(), max_size=8))
def test_anything_can_be_shown(text: str) -> None:
    show_text(text).encode()
    assert show_text(text) == text or any("\ud800" <= c <= "\udfff" for c in text)


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_each_comparison_reads_as_it_should(path: Path, semantics) -> None:
    queries = [f"SELECT text FROM word WHERE id = {number}" for number in (1, 2, 3, 4)]
    expected = {
        # Each text is itself alone; to Spider's script all are empty; BIRD's fails.
        "strict": (Reason.RESULTS_EQUAL, Reason.VALUES_DIFFER),
        "spider": (Reason.RESULTS_EQUAL, Reason.RESULTS_EQUAL),
        "bird": (Reason.GOLD_EXECUTION_ERROR, Reason.GOLD_EXECUTION_ERROR),
    }[semantics]
    with SQLiteEngine(path) as engine:
        for predicted in queries:
            for gold in queries:
                verification = verify_sql(predicted + " LIMIT 1", gold, engine, semantics=semantics)
                assert verification.reason is expected[predicted != gold], (predicted, gold)


def test_birds_script_fails_on_a_prediction_with_such_text(path: Path) -> None:
    with SQLiteEngine(path) as engine:
        verification = verify_sql(
            "SELECT text FROM word", "SELECT id FROM word", engine, semantics="bird"
        )
    assert verification.reason is Reason.PREDICTION_EXECUTION_ERROR
    assert "UTF-8" in (verification.error or "")


def test_rows_are_the_same_through_workers_and_caches(path: Path, tmp_path: Path) -> None:
    sql = "SELECT text FROM word"
    expected = tuple((decode_text(value),) for value in (*CYRILLIC, *ACCENTS))
    with SQLiteEngine(path) as engine, IsolatedEngine(path) as isolated:
        assert engine.execute(sql).rows == isolated.execute(sql).rows == expected
        assert isolated.execute("SELECT * FROM t").error == engine.execute("SELECT * FROM t").error
    # Slow enough to be kept on disk.
    gold = (
        "SELECT text FROM word, (WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r"
        " LIMIT 30000) SELECT max(x) FROM r) WHERE id IN (1, 2)"
    )
    with DatabaseCatalog.from_path(path) as catalog:
        for _ in range(2):
            with SQLVerifier(catalog, num_workers=1, cache_dir=tmp_path / "cache") as verifier:
                right, wrong = verifier.verify(
                    [
                        VerificationRequest("fresh", f"SELECT text FROM word WHERE id {ids}", gold)
                        for ids in ("< 3", "> 2")
                    ]
                )
            assert (right.reason, wrong.reason) == (Reason.RESULTS_EQUAL, Reason.VALUES_DIFFER)
    assert list((tmp_path / "cache").glob("*/*.gold"))


def test_names_keep_their_bytes_in_the_schema_and_can_be_shown(path: Path) -> None:
    with SQLiteEngine(path) as engine:
        tables = {table.name: table for table in engine.get_tables()}
        schema = get_schema(engine)
        assert infer_foreign_keys(engine, schema, min_confidence=0) is not None
        result = engine.execute("SELECT * FROM t")
    assert [c.name for c in tables["t"].columns] == ["id", "n\udce4me", "other"]
    assert tables["b\udce4d"].foreign_keys[0].referenced_table == "word"
    assert tables["child"].foreign_keys[0].referenced_table == "b\udce4d"
    assert not result.ok and "n\\xe4me" in (result.error or "")
    values = {("word", "text"): [decode_text(value) for value in CYRILLIC]}
    for style in SCHEMA_STYLES:
        shown = format_schema(
            schema, style=style, sample_values=None if style == "compact" else values
        )
        shown.encode()
        assert '"n\\xe4me"' in shown and '"b\\xe4d"' in shown
    assert make_visible("caf\udce9") == "caf\\xe9"


def test_previews_can_be_written(path: Path) -> None:
    question = Question("1", "fresh", "Which texts are there?", "SELECT text, id FROM word")
    with DatabaseCatalog.from_path(path) as catalog:
        with SQLVerifier(catalog, num_workers=0) as verifier:
            report = evaluate_sql([question], {"1": "SELECT text FROM word"}, verifier)
        previews = preview_results(report, catalog)
    rows = previews["fresh", "SELECT text FROM word"].rows
    assert rows[2:] == (("\\xe9",), ("\\xe8",))
    str(previews).encode()


def test_neighbours_hold_the_same_bytes(path: Path, tmp_path: Path) -> None:
    with SQLiteEngine(path) as engine:
        profile = profile_database(engine)
    assert [table.name for table in profile.tables] == ["word", "t", "child"]
    assert [column.name for column in profile.tables[1].columns] == ["id", "other"]
    fuzzer = DatabaseFuzzer(profile)
    seen: set[object] = set()
    for number in range(4):
        fuzzer.write(number, tmp_path / "instance.sqlite")
        with SQLiteEngine(tmp_path / "instance.sqlite") as engine:
            rows = engine.execute("SELECT id, text, size FROM word").rows
        assert sorted(rows) == sorted(fuzzer.draw(number)["word"])
        seen |= {row[1] for row in rows}
    assert seen <= {decode_text(value) for value in (*CYRILLIC, *ACCENTS)} and len(seen) > 1


def test_conversion_keeps_texts_and_columns_apart(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from sense_trl.database.duckdb_engine import DuckDBEngine
    from sense_trl.database.duckdb_import import convert_sqlite

    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mixed (a TEXT, b)")
        connection.execute(f"INSERT INTO mixed VALUES ('\\xe9', 1), ({_as_text(ACCENTS[0])}, 'ok')")
    connection.close()
    report = convert_sqlite(path, tmp_path / "out.duckdb")
    with DuckDBEngine(tmp_path / "out.duckdb") as engine:
        texts = (
            "\\xcf\\xf0\\xe8\\xe2\\xe5\\xf2",
            "\\xd0\\xee\\xf1\\xf1\\xe8\\xff",
            "\\xe9",
            "\\xe8",
        )
        expected = tuple((i, text, 10 * i) for i, text in enumerate(texts, start=1))
        assert engine.execute("SELECT * FROM word ORDER BY id").rows == expected
        # A column whose name is not UTF-8 has its values, and not its name.
        assert engine.execute('SELECT id, "n\\xe4me", other FROM t ORDER BY id').rows == expected
        # One text is what the other would be written as.
        mixed = engine.execute("SELECT * FROM mixed").rows
        assert mixed == ((b"\\xe9", "1"), (b"\xe9", "ok"))
    assert report.types["t"] == {"id": "BIGINT", "n\\xe4me": "VARCHAR", "other": "BIGINT"}
    assert report.types["mixed"] == {"a": "BLOB", "b": "VARCHAR"}
    assert "table b\\xe4d: its name is not UTF-8" in report.dropped
    assert [line.split(":")[0] for line in report.not_utf8] == [
        "column text of word",
        "column n\\xe4me of t",
        "column n\\xe4me of t",
        "column a of mixed",
    ]
    str(report).encode()
