"""`sense-trl evaluate FILES`: every score of predictions, as a table and as a report."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl._files import check_writable, write_text_atomically
from sense_trl.cli.terminal import hint_at_chat
from sense_trl.errors import InputError
from sense_trl.options import DataArguments
from sense_trl.steps.arguments import EvaluationArguments

if TYPE_CHECKING:
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.evaluation.records import EvaluationReport
    from sense_trl.evaluation.report import ReportSection
    from sense_trl.questions import Question
    from sense_trl.verification.comparison import Semantics

_MAX_ERROR_CLASSES: Final = 8


def evaluate_files(data: DataArguments, options: EvaluationArguments, console: Any) -> None:
    """Score files of predictions.

    Raises:
        SenseTRLError: unusable input.
    """
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.evaluation.records import EvaluationReport
    from sense_trl.questions import load_questions
    from sense_trl.schema import load_spider_schemas
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.verification import (
        get_limits,
        get_suite_notes,
        open_execution,
        open_scorer,
    )

    # It warns of every statement that it reads only in part; a prediction may be anything.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    if options.output_dir is not None:
        check_writable(options.output_dir, "output_dir")
    schemas = None if data.tables_json is None else load_spider_schemas(data.tables_json)
    with DatabaseCatalog.from_path(data.database, limits=get_limits(options)) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(data.questions, default_db_id=only, needs_text=False)
        runs = [EvaluationReport.load(path) for path in options.compare_with]
        for path, earlier in zip(options.compare_with, runs, strict=True):
            _check_questions(path, earlier, questions)
        paths = options.predictions
        names = _get_names(paths, options.run_name)
        extract = options.extract
        answers = [_read(path, questions, "strict", extract) for path in paths]
        spider_answers = [_read(path, questions, "spider", extract) for path in paths]
        for path, predictions in zip(paths, answers, strict=True):
            hint_at_chat(console, path, predictions.values(), options)
        folder = None if options.output_dir is None else Path(options.output_dir)
        with (
            open_execution(catalog, options, schemas) as (backend, verifier, suite_verifier),
            open_scorer(folder, catalog, data, options, backend) as score,
        ):
            for name, predictions, spider_predictions in zip(
                names, answers, spider_answers, strict=True
            ):
                with stage_bar(console, f"Evaluating {name}", len(questions)) as bar:
                    report = score(
                        questions,
                        predictions,
                        verifier,
                        name=name,
                        on_progress=bar.advance,
                        spider_predictions=spider_predictions,
                        schemas=schemas,
                        suite_verifier=suite_verifier,
                        soft_f1=options.soft_f1,
                        efficiency_repetitions=options.efficiency,
                    )
                notes = {**report.notes, **get_suite_notes(options)}
                runs.append(replace(report, notes=notes))
        # First, because it needs no disk; what cannot be printed is written all the same.
        try:
            print(_format(runs), flush=True)  # noqa: T201 - the result of the command
        finally:
            if options.output_dir is not None:
                _write(Path(options.output_dir), runs, len(names), catalog)
                console.print(f"report: {options.output_dir}", soft_wrap=True, highlight=False)


# ---------------------------------------------------------------------- input


def _read(
    path: str, questions: Sequence[Question], semantics: Semantics, extract: bool
) -> dict[str, str]:
    from sense_trl.evaluation.predictions import load_predictions

    texts = load_predictions(path, questions, semantics=semantics, extract=extract)
    return {q.question_id: sql for q, sql in zip(questions, texts, strict=True)}


def _get_names(paths: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The label of each run: unique, also as part of a file name."""
    if given is not None and len(given) != len(paths):
        raise InputError(
            f"`run_name` has {len(given)} labels for {len(paths)} prediction files; give one for "
            "each"
        )
    files = [Path(path).absolute() for path in paths]
    # Files of one name tend to lie in folders named after their models.
    candidates = [given] if given else [[f.stem for f in files], [f.parent.name for f in files]]
    for names in candidates:
        if len(set(map(_as_file_name, names))) == len(paths):
            return list(names)
    raise InputError(
        f"`run_name`: {candidates[0]} do not tell the runs apart; give labels that differ"
    )


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _check_questions(path: str, run: EvaluationReport, questions: Sequence[Question]) -> None:
    asked = [(q.question_id, q.db_id, q.gold_sql, q.level) for q in questions]
    if [(r.question_id, r.db_id, r.gold_sql, r.level) for r in run.records] != asked:
        raise InputError(
            f"`compare_with` {path} answers other questions than `questions` has (or in another "
            "order); evaluate both runs on the same file"
        )


# ---------------------------------------------------------------------- output


def _write(
    folder: Path, runs: Sequence[EvaluationReport], num_new: int, catalog: DatabaseCatalog
) -> None:
    from sense_trl.evaluation.markdown import format_markdown
    from sense_trl.evaluation.report import preview_results, write_html_report

    for run in runs[-num_new:]:
        mark = f"-{_as_file_name(run.name)}" if num_new > 1 else ""
        run.save(folder / f"evaluation{mark}.json")
    title = "Text-to-SQL evaluation"
    write_text_atomically(folder / "report.md", format_markdown(runs, title=title))
    write_html_report(
        folder / "report.html",
        runs,
        title=title,
        subtitle=f"{len(runs[0].records)} questions on {len(runs[0].by_db_id())} databases",
        previews=preview_results(runs[-1], catalog),
    )


def _format(runs: Sequence[EvaluationReport]) -> str:
    """Scores, hardness and the most frequent errors as aligned columns, then the comparisons."""
    from sense_trl.evaluation.markdown import (
        get_changes,
        get_error_table,
        get_hardness_table,
        get_score_table,
    )

    tables = [
        get_score_table(runs),
        get_hardness_table(runs),
        get_error_table(runs, max_classes=_MAX_ERROR_CLASSES),
    ]
    parts = [_align(table) for table in tables if table.rows]
    return "\n\n".join([*parts, *get_changes(runs)])


def _align(table: ReportSection) -> str:
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([*aligned, table.note])
