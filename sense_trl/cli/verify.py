"""`sense-trl verify`: which predictions answer as gold does, and why the others do not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sense_trl._files import check_writable_file, write_text_atomically
from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import hint_at_chat
from sense_trl.options import DataOptions, ExecutionOptions, PredictionOptions, option

if TYPE_CHECKING:
    from sense_trl.questions import Question
    from sense_trl.verification.judging import Verification


@dataclass(kw_only=True)
class VerifyOptions(ExecutionOptions, PredictionOptions, DataOptions):
    """Predictions, and how they are compared."""

    semantics: Literal["strict", "spider", "bird"] = option(
        "How results are compared; spider and bird reproduce the official evaluators.",
        default="strict",
    )
    output: str | None = option("Where to write the verdicts, as JSON Lines.", default=None)


def run(options: VerifyOptions, console: Any) -> None:
    """Run the command."""
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.evaluation.predictions import load_predictions
    from sense_trl.questions import load_questions
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.verification import get_limits
    from sense_trl.verification.judging import VerificationRequest
    from sense_trl.verification.verifier import SQLVerifier

    if options.output is not None:
        check_writable_file(options.output, "output")
    limits = get_limits(options)
    with DatabaseCatalog.from_path(options.database, limits=limits) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(options.questions, default_db_id=only, needs_text=False)
        predictions = load_predictions(
            options.predictions,
            questions,
            semantics=options.semantics,
            extract=options.extract,
        )
        hint_at_chat(console, options.predictions, predictions, options)
        requests = [
            VerificationRequest(question.db_id, sql, question.gold_sql)
            for question, sql in zip(questions, predictions, strict=True)
        ]
        with (
            SQLVerifier(
                catalog,
                semantics=options.semantics,
                num_workers=options.num_workers,
                cache_dir=options.cache_dir,
            ) as verifier,
            stage_bar(console, "Verifying", len(requests)) as bar,
        ):
            verifications = verifier.verify(requests, on_progress=bar.advance)
    # First, because it needs no disk; what cannot be printed is written all the same.
    try:
        print(_summary(verifications), flush=True)  # noqa: T201 - the result of the command
    finally:
        if options.output is not None:
            lines = map(_record, questions, predictions, verifications)
            write_text_atomically(options.output, "".join(lines))
            console.print(f"verdicts: {options.output}", soft_wrap=True, highlight=False)


def _record(question: Question, sql: str, verification: Verification) -> str:
    predicted, gold = verification.predicted_status, verification.gold_status
    record = {
        "question_id": question.question_id,
        "db_id": question.db_id,
        "verdict": str(verification.verdict),
        "reason": str(verification.reason),
        "predicted_status": None if predicted is None else str(predicted),
        "gold_status": None if gold is None else str(gold),
        "error": verification.error,
        "sql": sql,
    }
    # ASCII, because a prediction may hold lone surrogates.
    return json.dumps(record) + "\n"


def _summary(verifications: Sequence[Verification]) -> str:
    """Counts by verdict and reason, most frequent reason first."""
    from sense_trl.verification.comparison import Verdict

    total = len(verifications)
    lines = [f"{'predictions':<32}{total:>7}"]
    for verdict in Verdict:
        reasons = Counter(v.reason for v in verifications if v.verdict is verdict)
        count = reasons.total()
        lines.append(f"{verdict:<32}{count:>7}{100 * count / total:>8.1f} %")
        if verdict is not Verdict.CORRECT:
            lines += [f"  {reason:<30}{number:>7}" for reason, number in reasons.most_common()]
    return "\n".join(lines)


COMMAND: Final = Command(
    "verify",
    "execute predictions and compare them with gold",
    run,
    (VerifyOptions,),
    description="Execute predicted SQL and gold SQL on their databases, in sandboxed worker "
    "processes, and say for each prediction whether it is correct, wrong or undetermined, and why. "
    "Prints counts; --output writes one line of JSON per question.",
)
