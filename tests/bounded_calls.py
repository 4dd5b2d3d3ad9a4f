"""Every function that reads a model's text, in a process that a test can kill: `python this file`.

One JSON object a line: `{"call": ..., "text": ...}` in, the seconds of CPU time or an error out.
"""

from __future__ import annotations

import atexit
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sense_trl.database import ColumnInfo, TableInfo
from sense_trl.database.profile import profile_database
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import SenseTRLError
from sense_trl.evaluation.exact_set_match import exact_set_match
from sense_trl.evaluation.hardness import get_hardness
from sense_trl.evaluation.spider_sql import get_table_columns, read_gold_sql, read_spider_sql
from sense_trl.evaluation.sql_diff import mark_differences
from sense_trl.pairs.databases import identify_query
from sense_trl.pairs.distance import token_distance
from sense_trl.prompts import extract_sql
from sense_trl.questions import Question
from sense_trl.schema.graph import SchemaGraph, get_used_columns
from sense_trl.schema.naming import normalise
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql import ambiguity, parsing, volatility
from sense_trl.sql.mutation import mutate_sql
from sense_trl.sql.plain_query import read_plain_query
from sense_trl.sql.reading import count_flaws, read_query, scan_tokens
from sense_trl.sql.spans import get_maskable_spans
from sense_trl.sql.taxonomy import classify_errors
from sense_trl.sql.transpile import sqlite_to_duckdb, sqlite_to_postgres
from sense_trl.synthesis.answers import find_json, is_refusal, is_text
from sense_trl.synthesis.explore.instructions import parse_instructions
from sense_trl.synthesis.explore.redundancy import is_redundant
from sense_trl.synthesis.explore.rendering import QuestionWriter
from sense_trl.synthesis.explore.templates import TemplateMiner, get_complexity
from sense_trl.synthesis.filters.contamination import EvaluationIndex, normalize_question
from sense_trl.synthesis.filters.normal_template import get_normal_template
from sense_trl.synthesis.filters.sql_template import get_sql_template
from sense_trl.synthesis.recursive.invention import parse_invention
from sense_trl.synthesis.strong.level import get_level
from sense_trl.synthesis.strong.prompt import is_complete, parse_answer
from sense_trl.synthesis.strong.schema_design import parse_design
from sense_trl.synthesis.strong.value_hints import get_example_values, get_wanted_values
from sense_trl.verification.comparison import results_match
from sense_trl.verification.judging import verify_sql
from sense_trl.verification.reordering import get_reordered_queries
from sense_trl.verification.suite.hints import get_hints

COLUMNS: Final = {"t": {"a": "int", "b": "text"}, "u": {"a": "int", "c": "text"}}
TABLES: Final = tuple(
    TableInfo(table, tuple(ColumnInfo(*own, False, 0) for own in columns.items()), (), False)
    for table, columns in COLUMNS.items()
)
SCHEMA: Final = DatabaseSchema("pets", "sqlite", TABLES)
DESIGN: Final = parse_design("CREATE TABLE t (a int, b text); CREATE TABLE u (a int, c text)")
GOLD: Final = "SELECT a FROM t WHERE b = 'x' AND a > 3 UNION SELECT a FROM u"
NESTED_GOLD: Final = (
    "SELECT a FROM t AS x WHERE b IN (SELECT b FROM t WHERE a = 1 AND b IN "
    "(SELECT c FROM u GROUP BY c HAVING count(*) > 1)) ORDER BY a LIMIT 3"
)

_folder = tempfile.TemporaryDirectory()
atexit.register(_folder.cleanup)
_path = Path(_folder.name) / "pets.sqlite"
_connection = sqlite3.connect(_path)
_connection.executescript(
    "CREATE TABLE t (a int, b text); CREATE TABLE u (a int, c text);"
    "INSERT INTO t VALUES (1, 'x'), (5, 'x'); INSERT INTO u VALUES (5, 'y');"
)
_connection.close()
ENGINE: Final = SQLiteEngine(_path)
PROFILE: Final = profile_database(ENGINE)

_LITE: Final = "sqlite"
GRAPH: Final = SchemaGraph(SCHEMA)
WRITER: Final = QuestionWriter(GRAPH)
MINER: Final = TemplateMiner(GRAPH)
INDEX: Final = EvaluationIndex([Question("q", "pets", "Which?", GOLD)], dialect=_LITE)


def _verify(predicted: str, gold: str) -> None:
    for semantics in ("strict", "spider", "bird"):
        verify_sql(predicted, gold, ENGINE, semantics=semantics)


def _match(text: str) -> None:
    result = ENGINE.execute("SELECT 1 UNION SELECT 2")
    results_match(result, result, semantics="strict", gold_sql=f"{text} ORDER BY a", dialect=_LITE)


CALLS: Final[dict[str, Callable[[str], Any]]] = {
    "parse_sql": lambda text: parsing.parse_sql(text, _LITE),
    "parse_sql of DuckDB": lambda text: parsing.parse_sql(text, "duckdb"),
    "parse_folded": lambda text: parsing.parse_folded(text, "postgres"),
    "parse_statements": lambda text: parsing.parse_statements(text, "mysql"),
    "canonical_sql": lambda text: parsing.canonical_sql(text, _LITE),
    "canonical_sql of DuckDB": lambda text: parsing.canonical_sql(text, "duckdb"),
    "canonical_sql of PostgreSQL": lambda text: parsing.canonical_sql(text, "postgres"),
    "order_matters": lambda text: parsing.order_matters(text + " ORDER BY a", _LITE),
    "outer_limit": lambda text: parsing.outer_limit(text + " LIMIT 1", _LITE),
    "is_cut": lambda text: parsing.is_cut(text + " LIMIT 1", _LITE),
    "get_offset": lambda text: parsing.get_offset(text + " LIMIT 1 OFFSET 2", _LITE),
    "visible_sort_columns": lambda text: parsing.visible_sort_columns(text + " ORDER BY a", _LITE),
    "get_tie_query": lambda text: parsing.get_tie_query(text + " ORDER BY a", _LITE, limit=3),
    "get_unlimited_query": lambda text: parsing.get_unlimited_query(text, _LITE),
    "without_end": lambda text: parsing.without_end(text + ";", _LITE),
    "is_volatile": lambda text: volatility.is_volatile(text, _LITE),
    "get_clock_queries": lambda text: volatility.get_clock_queries(text + ", date(a)", _LITE),
    "depends_on_scan_order": lambda text: ambiguity.depends_on_scan_order(text, _LITE),
    "get_bare_column_queries": lambda text: ambiguity.get_bare_column_queries(
        text + " GROUP BY b", _LITE
    ),
    "get_choosing_subqueries": lambda text: ambiguity.get_choosing_subqueries(text, _LITE),
    "read_plain_query": read_plain_query,
    "get_tie_breaking_queries": lambda text: ambiguity.get_tie_breaking_queries(
        text + " LIMIT 1", _LITE
    ),
    "get_reordered_queries": lambda text: list(get_reordered_queries(text, TABLES, _LITE)),
    "count_flaws": lambda text: count_flaws(text, _LITE),
    "read_query": lambda text: read_query(text, 0),
    "scan_tokens": lambda text: list(scan_tokens(text)),
    "get_maskable_spans": get_maskable_spans,
    "mutate_sql": lambda text: mutate_sql(text, _LITE, columns=COLUMNS, max_mutants=8),
    "classify_errors": lambda text: classify_errors(text, GOLD, _LITE, columns=COLUMNS),
    "classify_errors, nested gold": lambda text: classify_errors(
        text, NESTED_GOLD, _LITE, columns=COLUMNS
    ),
    "classify_errors, as gold": lambda text: classify_errors(
        NESTED_GOLD, text, _LITE, columns=COLUMNS
    ),
    "classify_errors, as both": lambda text: classify_errors(
        text, text.replace("a", "b"), _LITE, columns=COLUMNS
    ),
    "sqlite_to_duckdb": lambda text: sqlite_to_duckdb(text, COLUMNS),
    "sqlite_to_postgres": lambda text: sqlite_to_postgres(text, COLUMNS),
    "token_distance": lambda text: token_distance(text, GOLD, _LITE),
    "token_distance, as both": lambda text: token_distance(text, text + " x", _LITE),
    "identity of a candidate": lambda text: identify_query(text, _LITE),
    "mark_differences": lambda text: mark_differences(GOLD, text),
    "read_spider_sql": lambda text: read_spider_sql(text, get_table_columns(SCHEMA)),
    "read_gold_sql": lambda text: read_gold_sql(text, get_table_columns(SCHEMA)),
    "exact_set_match": lambda text: exact_set_match(text, GOLD, SCHEMA),
    "get_hardness": lambda text: get_hardness(text, SCHEMA),
    "results_match": _match,
    "verify_sql": lambda text: _verify(text, GOLD),
    "verify_sql, as gold": lambda text: _verify(GOLD, text),
    "get_hints": lambda text: get_hints(text, PROFILE),
    "get_used_columns": lambda text: get_used_columns(text, SCHEMA),
    "get_normal_template": lambda text: get_normal_template(text, _LITE),
    "get_sql_template": lambda text: get_sql_template(text, _LITE),
    "get_level": lambda text: get_level(text, _LITE),
    "is_redundant": lambda text: is_redundant(text, _LITE),
    "QuestionWriter.write": lambda text: WRITER.write(text, random.Random(0)),
    "TemplateMiner.mine": MINER.mine,
    "EvaluationIndex.find": lambda text: INDEX.find("How many?", text),
    "EvaluationIndex.find, as question": lambda text: INDEX.find(text, GOLD),
    "EvaluationIndex, of it": lambda text: EvaluationIndex(
        [Question("q", "pets", "How many?", text)], dialect=_LITE
    ),
    "get_complexity": lambda text: get_complexity(text, _LITE),
    "get_wanted_values": lambda text: get_wanted_values(DESIGN, text, _LITE),
    "get_example_values": lambda text: get_example_values(DESIGN, text),
    "parse_design": parse_design,
    "extract_sql": extract_sql,
    "find_json": lambda text: list(find_json(text)),
    "is_refusal": is_refusal,
    "is_text": is_text,
    "normalize_question": normalize_question,
    "parse_instructions": parse_instructions,
    "parse_invention": parse_invention,
    "parse_answer": parse_answer,
    "is_complete": lambda text: is_complete(f"SQL:\n{text}"),
    "normalise": normalise,
}


def _answer(call: str, text: str) -> dict[str, Any]:
    started = time.process_time()
    try:
        CALLS[call](text)
    except SenseTRLError:
        pass
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"seconds": time.process_time() - started}


if __name__ == "__main__":
    random.seed(0)
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(_answer(**request)) + "\n")
        sys.stdout.flush()
