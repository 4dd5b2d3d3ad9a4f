"""Checks of gold queries: unusable, contradictory, or deciding nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.questions import Question
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.judging import Verification, VerificationRequest
from sense_trl.verification.verifier import SQLVerifier

# Queries for the same words beyond these are not compared: each is run against each.
_MAX_COMPARED: Final = 5


def find_missing_databases(
    catalog: DatabaseCatalog, questions: Sequence[Question]
) -> dict[str, str]:
    """Question id to the reason, for questions whose database the catalog lacks."""
    return {
        question.question_id: f"the database {question.db_id!r} is not there"
        for question in questions
        if question.db_id not in catalog
    }


def find_unusable_gold(catalog: DatabaseCatalog, questions: Sequence[Question]) -> dict[str, str]:
    """Question id to the reason why its gold query cannot be executed.

    Such a question is of no use at all: its database is missing, or the query fails or exceeds the
    limits of the catalog.

    Raises:
        DatabaseError: a database cannot be read.
    """
    missing = find_missing_databases(catalog, questions)
    reasons = {}
    for question in questions:
        if question.question_id in missing:
            reasons[question.question_id] = missing[question.question_id]
            continue
        result = catalog.engine(question.db_id).execute(question.gold_sql)
        if not result.ok:
            reasons[question.question_id] = (
                f"the gold query gives {result.status} ({result.error}): {question.gold_sql}"
            )
    return reasons


def find_contradictory_gold(
    verifier: SQLVerifier, questions: Sequence[Question]
) -> list[tuple[str, str]]:
    """Ids of questions in the same words whose gold queries give different results.

    Spacing of the words does not count, nor does an order that one of the queries leaves open. Of
    questions with the same query the first is named.

    Raises:
        InputError: a `db_id` is unknown to the verifier.
        DatabaseError: a database cannot be read.
    """
    groups: dict[tuple[str, str, str | None], dict[str, str]] = {}
    pairs: list[tuple[str, str]] = []
    requests: list[VerificationRequest] = []
    for question in questions:
        words = " ".join(question.question.split())
        asked = groups.setdefault((question.db_id, words, question.evidence), {})
        if question.gold_sql in asked or len(asked) == _MAX_COMPARED:
            continue
        for sql, question_id in asked.items():
            pairs.append((question_id, question.question_id))
            # What one leaves open, the other may fix: only both ways round they differ.
            requests += [
                VerificationRequest(question.db_id, *sides, "strict")
                for sides in ((question.gold_sql, sql), (sql, question.gold_sql))
            ]
        asked[question.gold_sql] = question.question_id
    verdicts = [found.verdict for found in verifier.verify(requests)]
    both_sides = zip(verdicts[::2], verdicts[1::2], strict=True)
    # Of several that a question contradicts the first is named.
    found: dict[str, str] = {}
    for (earlier, later), sides in zip(pairs, both_sides, strict=True):
        if all(verdict is Verdict.WRONG for verdict in sides):
            found.setdefault(later, earlier)
    return [(earlier, later) for later, earlier in found.items()]


def find_undetermined_gold(
    verifier: SQLVerifier, questions: Sequence[Question]
) -> dict[str, Verification]:
    """Question id to the verification of its gold query, where that decides nothing.

    Such a query (it fails, its result is empty, LIMIT cuts inside a tie, ...) may train, but it
    labels no pair, and no answer to it can be called correct.

    Raises:
        InputError: a `db_id` is unknown to the verifier.
        DatabaseError: a database cannot be read.
    """
    found = verifier.verify_all_gold([(q.db_id, q.gold_sql) for q in questions])
    return {
        question.question_id: verification
        for question, verification in zip(questions, found, strict=True)
        if verification.verdict is not Verdict.CORRECT
    }
