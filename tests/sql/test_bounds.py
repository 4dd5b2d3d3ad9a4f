"""Whatever a text says, reading it ends soon and raises nothing but errors of ours.

The calls run in a process of their own, so that one that hangs is a failure and not a hung test.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from bounded_calls import CALLS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repetition import LOOPS, repeat

import sense_trl
from sense_trl.sql import parsing
from sense_trl.sql.normal_form import get_normal_form
from sense_trl.sql.parsing import SQLNestingError, SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.sql.taxonomy import ErrorClass, classify_errors

_ROOT: Final = Path(__file__).resolve().parents[2]
# A call takes 0.1 s, and the slowest 2 s of a processor that nobody else uses.
_PATIENCE_S: Final = 30.0
_MAX_CPU_S: Final = 5.0


class _Reader:
    """Asks the process, and kills it where it does not answer."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, call: str, text: str) -> float:
        """Seconds of CPU time that a call took."""
        if self._process is None:
            path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
            self._process = subprocess.Popen(
                [sys.executable, str(_ROOT / "tests" / "bounded_calls.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"call": call, "text": text}) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            what = "hung" if not ready else f"died ({process.returncode})"
            pytest.fail(f"{call} {what} on {len(text)} characters: {text[:100]!r}")
        answer = json.loads(line)
        assert "error" not in answer, f"{call}: {answer['error']} on {text[:100]!r}"
        seconds: float = answer["seconds"]
        return seconds

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def reader() -> Iterator[_Reader]:
    reader = _Reader()
    yield reader
    reader.close()


# ---------------------------------------------------------------------- loops

_NAMES: Final = list(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_a_text_that_repeats_itself_is_read_in_time(reader: _Reader, call: str) -> None:
    # Other loops for each call, so that every loop is read by several; one in ten is long.
    number = _NAMES.index(call)
    for name in list(LOOPS)[number % 9 :: 9]:
        assert reader.read(call, repeat(name, 40)) < _MAX_CPU_S, name
    for name in list(LOOPS)[number % 90 :: 90]:
        assert reader.read(call, repeat(name, 1_500)) < _MAX_CPU_S, name


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("count", [120, 240, 1_600, 4_900, 30_000])
def test_loops_of_every_length_are_read_in_time(reader: _Reader, call: str, count: int) -> None:
    # All loops for all calls take most of an hour: every loop is read by a few of them.
    for name in list(LOOPS)[(_NAMES.index(call) + count) % 20 :: 20]:
        assert reader.read(call, repeat(name, count)) < _MAX_CPU_S, (name, count)


_PIECES: Final = sorted({piece for _, piece, _ in LOOPS.values()})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(sorted({head for head, _, _ in LOOPS.values()})),
    pieces=st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4),
    length=st.integers(20, 6_000),
    tail=st.sampled_from(sorted({tail for _, _, tail in LOOPS.values()})),
    call=st.sampled_from(_NAMES),
)
def test_pieces_that_take_turns_are_read_in_time(
    reader: _Reader, head: str, pieces: list[str], length: int, tail: str, call: str
) -> None:
    body = "".join(pieces)
    text = head + body * max(1, length // len(body)) + tail
    assert reader.read(call, text) < _MAX_CPU_S, (call, text[:200])


# Words of one part, where several parts of a pattern may take them.
_PROSE: Final = [
    ("question", " "), ("question", "* "), ("question 1", " \t"), ("", "question: x\n"),
    ("", "question:\nsql"), ("", "question: x\nsql: SELECT 1\n"), ("sql", " "), ("sql (", "("),
    ("", "\t "), ("", "> "), ("", "1. "), ("", "- "), ("", "**"), ("", "#"), ("level", "- "),
    ("", "{"), ("", '{"a": '), ("", "[1,"), ("", '["a", {"b": ['), (",", " "), ("", ", "),
    ("<think>", "x"), ("", "<think>"), ("", "</think>"), ("", "```"), ("", "```sql\nSELECT 1\n"),
    ("", "`"), ("", "<|im_end|>"), ("", "Final answer: "), ("approach", " "), ("", "CREATE TABLE "),
    ("", "CREATE TABLE t (a int); "), ("CREATE TABLE t (a int", ", a int"), ("", "we could also "),
    ("CREATE TABLE t (", "CHECK ("), ("CREATE TABLE t (a ", "ARRAY<"), ("", "-- x, 'a', 1\n"),
    ("\ta", "a"), ("assistant", "\n"), ("<|channel|>", "x"), ("", "(((-"), ("", "\N{ZERO WIDTH SPACE}"),
]  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "extract_sql",
        "find_json",
        "is_refusal",
        "parse_instructions",
        "parse_invention",
        "parse_answer",
        "is_complete",
        "parse_design",
        "get_example_values",
        "read_query",
        "scan_tokens",
    ],
)
def test_prose_that_repeats_itself_is_read_in_time(reader: _Reader, call: str) -> None:
    for head, piece in _PROSE:
        text = head + piece * (30_000 // len(piece)) + "\nsql: SELECT 1"
        assert reader.read(call, text) < _MAX_CPU_S, (head, piece)


def test_a_long_text_is_read_in_time_by_every_call(reader: _Reader) -> None:
    for call in CALLS:
        assert reader.read(call, "SELECT a FROM t WHERE " + "b = 'x' OR " * 20_000) < _MAX_CPU_S


# Parameters that hold what a model wrote.
_TEXTS: Final = {"sql", "predicted_sql", "gold_sql", "text", "left", "ddl", "question"}
# Their text is the user's or a database's, is only handed on, or is a value.
_OTHERS: Final = {
    "align_offsets", "drop_bad_bytes", "encode_text", "examine_gold", "format_invention",
    "get_prompt", "has_bad_bytes", "is_cut_short", "make_rows", "name_bad_bytes", "bags_equal",
    "rows_equal", "shape_of", "show_text", "time_pair", "values_equal", "verify_against",
    "without_empty_statements", "write_text_atomically",
}  # fmt: skip
_PARTS: Final = ("sql", "schema", "evaluation", "pairs", "synthesis", "verification")


def _readers_of_text() -> Iterator[str]:
    for module in pkgutil.walk_packages(sense_trl.__path__, "sense_trl."):
        if module.name.split(".")[1] not in _PARTS:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            is_own = inspect.isfunction(value) and value.__module__ == module.name
            if (
                is_own
                and not name.startswith("_")
                and _TEXTS & inspect.signature(value).parameters.keys()
            ):
                yield name


def test_every_function_that_reads_a_text_is_among_the_calls() -> None:
    known = {call.split(",")[0].split(" of ")[0] for call in CALLS}
    assert set(_readers_of_text()) - _OTHERS <= known


# ---------------------------------------------------------------------- the caps


def _deep(levels: int, piece: str = "abs(") -> str:
    return f"SELECT {piece * levels}1{')' * levels}"


def test_the_caps_stand_where_they_are_said_to() -> None:
    for sql in (
        _deep(20),
        "SELECT " + "CASE WHEN a THEN 1 END, " * 150 + "a FROM t",
        "SELECT a FROM t WHERE a IN (" + ", ".join(map(str, range(2_400))) + ")",
        "SELECT '" + "x" * 99_000 + "'",
        "SELECT a FROM t WHERE " + " OR ".join(f"a = {i}" for i in range(240)),
        "SELECT a FROM " + " JOIN ".join(["t"] * 10),
    ):
        assert parse_sql(sql, "sqlite").sql()
    for sql in (
        _deep(101),
        _deep(101, "("),
        "SELECT " + "CASE WHEN a THEN " * 101 + "1" + " END" * 101,
        "SELECT " + "CASE a.end WHEN a THEN " * 101 + "1" + " END" * 101,
        "SELECT a FROM t WHERE " + " OR ".join(f"a = {i}" for i in range(260)),
        "SELECT a" + " IS NOT NULL" * 120 + " FROM t",
    ):
        with pytest.raises(SQLNestingError):
            parse_sql(sql, "sqlite")
    for sql in (
        "SELECT '" + "x" * 100_000 + "'",
        "SELECT a" + ", a" * 2_500,
        "SELECT " + "1" * 4_500,
        "SELECT a FROM " + " JOIN ".join(["t"] * 40),
    ):
        with pytest.raises(SQLParseError) as raised:
            parse_sql(sql, "sqlite")
        assert not isinstance(raised.value, SQLNestingError)
        assert len(str(raised.value)) < 1_000


def test_brackets_in_a_row_are_levels() -> None:
    assert parse_sql("SELECT a" + "[0]" * 80, "duckdb").sql()
    with pytest.raises(SQLNestingError, match="brackets"):
        parse_sql("SELECT a" + "[0]" * 110, "duckdb")
    assert parse_sql("SELECT " + "[0], " * 400 + "1", "duckdb").sql()


def test_brackets_in_strings_are_not_counted() -> None:
    assert parse_sql("SELECT '" + "(" * 500 + "'", "sqlite").sql()
    assert parse_sql("SELECT a" + ", (1)" * 500, "sqlite").sql()


def test_the_work_of_the_parser_is_bounded_by_what_it_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Twice the work with every table, and within any budget as long as they are few.
    sql = "SELECT a FROM " + " JOIN ".join(["t"] * 10)
    assert parse_sql(sql, "sqlite").sql()
    monkeypatch.setattr(parsing, "_MIN_NODES", 50)
    with pytest.raises(SQLParseError, match="Maximum number"):
        parse_sql(sql, "sqlite")


@pytest.mark.parametrize(
    ("piece", "is_written"),
    [(" BETWEEN 1 AND a", True), (" IN (1, 2)", True), (" LIKE 'x'", False), (" + 1", False)],
)
def test_a_form_that_doubles_with_each_operator_is_refused(piece: str, is_written: bool) -> None:
    names = SchemaNames.of({"t": {"a": "int"}})

    def normalise(count: int) -> None:
        tree = parse_sql("SELECT a FROM t WHERE a" + piece * count, "sqlite")
        get_normal_form(tree, QueryNames(tree, names), dialect="sqlite")

    normalise(5)
    if is_written:
        with pytest.raises(SQLNestingError, match="parts"):
            normalise(30)
    else:
        normalise(30)


def test_what_is_nested_too_deeply_has_a_class_and_what_is_too_long_another() -> None:
    columns = {"t": ["a", "b"]}
    gold = "SELECT a FROM t"
    for sql, expected in (
        ("SELECT a FROM t WHERE a" + " BETWEEN 20 AND a" * 22, ErrorClass.WRONG_NESTING),
        ("SELECT a FROM t WHERE a" + " IN (1, 2)" * 20, ErrorClass.WRONG_NESTING),
        ("SELECT a FROM t WHERE a" + " IS NOT NULL" * 120, ErrorClass.WRONG_NESTING),
        ("SELECT " + "T1." * 120 + "a FROM t", ErrorClass.WRONG_NESTING),
        ("SELECT a" + ", a" * 5_000 + " FROM t", ErrorClass.DOES_NOT_PARSE),
    ):
        assert classify_errors(sql, gold, "sqlite", columns=columns) == (expected,)
        with pytest.raises(SQLParseError):
            classify_errors(gold, sql, "sqlite", columns=columns)


def test_many_subqueries_with_many_tables_each_are_compared_in_so_many_steps() -> None:
    nested, gold = "SELECT a FROM t", "SELECT b FROM t"
    for _ in range(8):
        nested = f"SELECT w.a FROM t x, t y, t z, t v, ({nested}) AS w"
        gold = f"SELECT w.b FROM t x, t y, t z, t v, ({gold}) AS w"
    columns = {"t": ["a", "b"]}
    assert classify_errors(nested, gold, "sqlite", columns=columns) == (ErrorClass.WRONG_NESTING,)


def test_a_chain_of_common_table_expressions_is_resolved_as_far_as_it_goes() -> None:
    parts = ["c0 AS (SELECT a FROM t)"] + [
        f"c{i} AS (SELECT a FROM c{i - 1})" for i in range(1, 30)
    ]
    tree = parse_sql(f"WITH {', '.join(parts)} SELECT a FROM c29, c5", "sqlite")
    names = QueryNames(tree, SchemaNames.of({"t": {"a": "int"}}))
    sources = {source.name: source.columns for source in names.sources(tree)}
    assert list(sources["c5"] or ()) == ["a"]
    assert list(sources["c29"] or ()) == ["a"]
