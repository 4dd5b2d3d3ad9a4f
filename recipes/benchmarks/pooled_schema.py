"""Execution accuracy on a wide schema: whole, what a linker leaves of it, and gold's own database.

Needs: an instruct model (a folder or a hub id), Spider's databases, tables.json and questions.

    python recipes/benchmarks/pooled_schema.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct \
        --questions spider/dev.json --database spider/database --tables-json spider/tables.json \
        --linkers names runs/linker --output runs/pool

All databases of the questions become one, `OUTPUT/pool/pool.sqlite`; a table whose name is taken
gets that of its database behind it. Gold is rewritten for it; questions of which it then gives
other rows, for it takes the first of equal ones, are left out. The model answers others, drawn by
`--seed`, greedily with the whole schema, with what each linker leaves of it (`names`, or folders
that `sense-trl link train` wrote), and with gold's own database. Printed are execution accuracy
(strict, and Spider's way) with 95 % intervals, what was gained and lost against the whole schema
(McNemar's exact test), for how many questions all that gold uses was shown, tokens, and CPU
seconds. Answers are written as they come; the same command continues.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import sqlglot
from prompt_styles import answer, report_style
from sqlglot import exp

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.linking import get_linking_labels
from sense_trl.linking.names import get_names
from sense_trl.linking.pooling import Pool, join_schemas
from sense_trl.options import GeneratorOptions
from sense_trl.prompts import PromptStyle, extract_sql
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.pruning import prune_schema
from sense_trl.prompts.style import NAME_LINKER
from sense_trl.prompts.writer import PromptWriter
from sense_trl.questions import Question, load_questions
from sense_trl.schema.naming import get_key
from sense_trl.schema.schema import load_spider_schemas
from sense_trl.steps.generator import load_generator
from sense_trl.steps.prompting import get_linker
from sense_trl.verification.verifier import SQLVerifier

POOL = "pool"
# Answers are written out after so many; the whole schema is read once for each.
_CHUNK = 20


def rewrite(pool: Pool, question: Question) -> Question:
    """The same question on a pool."""
    tree = sqlglot.parse_one(question.gold_sql, read="sqlite")
    for table in tree.find_all(exp.Table):
        new = pool.names.get((question.db_id, table.name.lower()))
        if new is not None and new.lower() != table.name.lower():
            alias = table.alias or table.name
            table.replace(exp.alias_(exp.to_table(new), alias, table=True))
    return replace(question, db_id=pool.schema.db_id, gold_sql=tree.sql("sqlite"))


def copy_rows(pool: Pool, catalog: DatabaseCatalog, db_ids: Collection[str], path: Path) -> None:
    """Write all tables with the types of their columns into one SQLite file."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        for db_id in db_ids:
            connection.execute("ATTACH ? AS source", [str(catalog.path(db_id))])
            for (owner, table), new in pool.names.items():
                if owner == db_id:
                    columns = connection.execute(f'PRAGMA source.table_info("{table}")').fetchall()
                    written = ", ".join(f'"{name}" {kind}' for _, name, kind, *_ in columns)
                    connection.execute(f'CREATE TABLE "{new}" ({written})')
                    connection.execute(f'INSERT INTO "{new}" SELECT * FROM source."{table}"')
            connection.commit()
            connection.execute("DETACH source")


def find_same(
    questions: Sequence[Question], pool: Pool, catalog: DatabaseCatalog, path: Path
) -> list[tuple[Question, Question]]:
    """Questions as they are and on the pool, where gold gives the same rows.

    Others take the first of equal rows, which may be another one.
    """
    found = []
    with closing(sqlite3.connect(path)) as wide:
        wide.text_factory = bytes
        for question in questions:
            rewritten = rewrite(pool, question)
            with closing(sqlite3.connect(str(catalog.path(question.db_id)))) as own:
                own.text_factory = bytes
                before = Counter(own.execute(question.gold_sql).fetchall())
            if before == Counter(wide.execute(rewritten.gold_sql).fetchall()):
                found.append((question, rewritten))
    return found


def count_kept(pool: Pool, style: PromptStyle, questions: Sequence[Question]) -> int:
    """Questions for which a style shows all that gold uses."""
    if style.linker is None:
        return len(questions)
    linker = (get_linker(style) or NameLinker)(pool.schema, {})
    kept = 0
    for question in questions:
        scores = linker.score(f"{question.evidence or ''}\n{question.question}", ())
        shown = prune_schema(pool.schema, scores, max_tables=style.linked_tables)
        there = {get_key(*name) for name in get_names(shown)}
        kept += get_linking_labels(question.gold_sql, pool.schema).items <= there
    return kept


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--model", "--questions", "--database", "--tables-json"):
        parser.add_argument(name, required=True)
    parser.add_argument("--linkers", nargs="*", default=[NAME_LINKER])
    parser.add_argument("--linked-tables", type=int, default=6)
    parser.add_argument("--max-questions", type=int, default=150)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--dtype", default="auto", help="float32 is fastest on most CPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    folder = options.output / POOL
    folder.mkdir(parents=True, exist_ok=True)

    own = load_questions(options.questions)
    schemas = load_spider_schemas(options.tables_json)
    db_ids = sorted({question.db_id for question in own})
    pool = join_schemas({db_id: schemas[db_id] for db_id in db_ids}, POOL)
    reports: dict[str, EvaluationReport] = {}
    with DatabaseCatalog.from_path(options.database) as catalog:
        copy_rows(pool, catalog, db_ids, folder / "pool.sqlite")
        same = find_same(own, pool, catalog, folder / "pool.sqlite")
        drawn = random.Random(options.seed).sample(same, min(options.max_questions, len(same)))
        own, pooled = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
        print(f"{len(pool.schema.tables)} tables; {len(own)} of {len(same)} questions", flush=True)
        generator = load_generator(
            GeneratorOptions(options.model, generation_dtype=options.dtype), batch_size=_CHUNK
        )
        with ExitStack() as stack:
            wide = stack.enter_context(DatabaseCatalog.from_path(folder / "pool.sqlite"))
            on_pool = stack.enter_context(SQLVerifier(wide))
            arms = {}
            for linker in (None, *options.linkers):
                style = PromptStyle(
                    linker=linker, linked_tables=options.linked_tables, num_matched_values=0
                )
                writer = PromptWriter(
                    wide, style, schemas={POOL: pool.schema}, make_linker=get_linker(style)
                )
                arms["whole" if linker is None else Path(linker).name] = (writer, pooled, on_pool)
            on_own = stack.enter_context(SQLVerifier(catalog))
            names = PromptStyle(num_matched_values=0)
            arms["own"] = (PromptWriter(catalog, names, schemas=schemas), own, on_own)
            # All arms answer some questions before any goes on, so that what is there compares.
            for end in range(_CHUNK, len(own) + _CHUNK, _CHUNK):
                for name, (writer, questions, verifier) in arms.items():
                    file = options.output / f"{name}.jsonl"
                    part = questions[:end]
                    records = answer(generator, writer, part, file, options.max_new_tokens)
                    there = {record["question_id"]: record for record in records}
                    records = [there[question.question_id] for question in part]
                    predictions = {r["question_id"]: extract_sql(r["answer"]) for r in records}
                    reports[name] = evaluate_sql(part, predictions, verifier, name=name)
                    told = report_style(name, reports[name], reports["whole"], records)
                    print(f"{len(part)} questions, {told}", flush=True)
        for name, (writer, questions, _) in arms.items():
            if name != "own":
                kept = count_kept(pool, writer.style, questions)
                print(f"{name}: all that gold uses is shown for {kept} questions", flush=True)


if __name__ == "__main__":
    main()
