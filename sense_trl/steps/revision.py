"""`revise`: a model is asked again about answers that fail or find no rows.

Gold is not looked at: what `Attempt.of` says of a result is all that decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from sense_trl._files import holds_json, read_json, write_text_atomically
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation.records import EvaluationRecord, EvaluationReport
from sense_trl.evaluation.report import ReportSection
from sense_trl.pairs.candidates import Candidate, write_candidates
from sense_trl.prompts import Attempt, choose_answer
from sense_trl.steps.processes import get_processes
from sense_trl.steps.progress import stage_bar
from sense_trl.task import TextToSQLTask
from sense_trl.verification.verifier import Verdict

_RESULT: Final = "revised.jsonl"


@dataclass(frozen=True, slots=True)
class Revision:
    """Outcome of asking a model again about answers of its own.

    Attributes:
        answers: the one that stands of each question, in the order of the first ones.
        before: what was wrong with first answers, by question id.
        after: what is wrong with those that stand.
    """

    answers: tuple[Candidate, ...]
    before: Mapping[str, Attempt]
    after: Mapping[str, Attempt]


def revise(
    task: TextToSQLTask,
    predictions: Iterable[Candidate],
    ask_again: Callable[[TextToSQLTask, int], Iterable[Candidate]],
    catalog: DatabaseCatalog,
    folder: Path,
    console: Console,
    *,
    num_rounds: int,
) -> Revision:
    """Have a model mend answers that fail or find no rows, with what the database says.

    Which answer of a question stands says `choose_answer`. What each round asks about is in
    `attempts-ROUND.json`, written before it is asked, so that an interrupted run continues with the
    same prompts and all processes have them; the answers that stand are in `revised.jsonl`.

    Args:
        task: the questions.
        predictions: an answer to each of them.
        ask_again: answers the questions of a task, whose prompts hold what failed; called with the
            number of the round, from 1 on, and not where there is nothing to mend.
        catalog: the databases; its limits are those of the answers.
        folder: where the files are.
        console: where bars are shown.
        num_rounds: how often a question is asked again at most.

    Raises:
        InputError: `folder` holds a revision of other answers or within other limits.
    """
    processes = get_processes()
    questions = {question.question_id: question for question in task.questions}
    answers = {candidate.question_id: [candidate] for candidate in predictions}
    attempts: dict[str, list[Attempt | None]] = {name: [] for name in answers}
    asked = list(answers)
    for number in range(1, num_rounds + 2):
        latest = {name: answers[name][-1].sql for name in asked}
        path = folder / f"attempts-{number}.json"
        identity = _identify(latest, catalog)
        if processes.is_main and not holds_json(path):
            databases = {name: questions[name].db_id for name in asked}
            title = "Execute answers" if number == 1 else f"Execute revisions {number - 1}"
            failing = _execute(latest, databases, catalog, console, title)
            known = {name: asdict(attempt) for name, attempt in failing.items()}
            text = json.dumps({**identity, "attempts": known}, indent=1)
            write_text_atomically(path, text)
        processes.wait()
        found = _read(path, identity)
        for name in asked:
            attempts[name].append(found.get(name))
        asked = [name for name in asked if name in found]
        if not asked or number > num_rounds:
            break
        failed = {name: [a for a in attempts[name] if a is not None] for name in asked}
        again = replace(task.select([questions[name] for name in asked]), attempts=failed)
        for candidate in ask_again(again, number):
            answers[candidate.question_id].append(candidate)
    stands = {name: choose_answer(own) for name, own in attempts.items()}
    final = tuple(answers[name][index] for name, index in stands.items())
    if processes.is_main:
        write_candidates(folder / _RESULT, [[candidate] for candidate in final])
    return Revision(
        final,
        {name: own[0] for name, own in attempts.items() if own[0] is not None},
        {name: a for name, own in attempts.items() if (a := own[stands[name]]) is not None},
    )


def _execute(
    answers: Mapping[str, str],
    databases: Mapping[str, str],
    catalog: DatabaseCatalog,
    console: Console,
    title: str,
) -> dict[str, Attempt]:
    """Faults of answers by question id; those that give rows are left out."""
    found = {}
    with stage_bar(console, title, len(answers)) as bar:
        for name, sql in answers.items():
            attempt = Attempt.of(sql, catalog.engine(databases[name]).execute(sql))
            if attempt is not None:
                found[name] = attempt
            bar.advance()
    return found


def _identify(answers: Mapping[str, str], catalog: DatabaseCatalog) -> dict[str, object]:
    """The facts that decide about the attempts, beside the databases."""
    content = json.dumps(answers)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"limits": asdict(catalog.limits), "answers_sha256": digest}


def _read(path: Path, identity: Mapping[str, object]) -> dict[str, Attempt]:
    data = read_json(path, "the record of answers that failed", *identity, "attempts")
    changed = [name for name, value in identity.items() if data[name] != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"{str(path)!r} tells of a revision with other `{name}`: {data[name]}, now "
            f"{identity[name]}. Choose another `output_dir`, or delete the files attempts-* and "
            "revisions-* in this one to ask again."
        )
    try:
        return {name: Attempt(**values) for name, values in data["attempts"].items()}
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{str(path)!r} is not the record of answers that failed as it was written ({error}). "
            "Delete it, then run the same again."
        ) from error


# ---------------------------------------------------------------------- what came of it


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of the questions that were asked again for one reason; changes are (made right, wrong)."""

    asked: int
    run: int
    with_rows: int
    strict: tuple[int, int]
    bird: tuple[int, int]


def _count(
    revision: Revision, before: EvaluationReport, after: EvaluationReport, *, has_run: bool
) -> _Counts:
    names = {name for name, attempt in revision.before.items() if attempt.runs is has_run}
    left = {name: revision.after[name] for name in names if name in revision.after}
    pairs = [
        pair
        for pair in zip(before.records, after.records, strict=True)
        if pair[0].question_id in names
    ]

    def compare(get: Callable[[EvaluationRecord], Verdict | None]) -> tuple[int, int]:
        changes = [(get(a) is Verdict.CORRECT, get(b) is Verdict.CORRECT) for a, b in pairs]
        return changes.count((False, True)), changes.count((True, False))

    return _Counts(
        asked=len(names),
        run=sum(name not in left or left[name].runs for name in names),
        with_rows=len(names) - len(left),
        strict=compare(lambda record: record.verdict),
        bird=compare(lambda record: record.bird),
    )


def get_revision_table(
    revision: Revision, before: EvaluationReport, after: EvaluationReport
) -> ReportSection:
    """Table of what was asked again, mended and broken, with a note that says it in words.

    Args:
        revision: what became of the answers.
        before: how the first ones score.
        after: how those that stand score, on the same questions.
    """
    counts = {
        label: _count(revision, before, after, has_run=has_run)
        for label, has_run in (("failed", False), ("found no rows", True))
    }
    failed, empty = counts.values()
    strict, bird = (
        [sum(numbers) for numbers in zip(*pairs, strict=True)]
        for pairs in ([failed.strict, empty.strict], [failed.bird, empty.bird])
    )
    note = (
        f"Asked again about {failed.asked + empty.asked} of {len(before.records)} answers: "
        f"{failed.asked} failed, {empty.asked} found no rows. Of those that failed {failed.run} "
        f"run now. {strict[0]} answers were made right, {strict[1]} right ones wrong (by BIRD's "
        f"comparison, where no rows may be right, {bird[0]} and {bird[1]})."
    )
    rows = [
        (label, *map(str, (own.asked, own.run, own.with_rows, *own.strict, *own.bird)))
        for label, own in counts.items()
    ]
    header = ("first answer", "asked again", "run now", "find rows now", "made right", "made wrong")
    return ReportSection(
        "Revision", (*header, "made right (BIRD)", "made wrong (BIRD)"), tuple(rows), note
    )
