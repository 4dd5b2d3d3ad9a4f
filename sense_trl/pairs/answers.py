"""`select_verified_answers`: a model's own right answers, as questions to fine-tune on.

Rejection sampling (RFT, Yuan et al. 2023, arXiv 2308.01825; STaR, arXiv 2203.14465): what a model
wrote by itself and execution found right is a target in the model's own style, where gold brings
in another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from sense_trl.errors import InputError
from sense_trl.pairs.builder import find_fault, group_by_question
from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.databases import identify_query
from sense_trl.pairs.policies import question_rng
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier, Verdict, VerificationRequest


def select_verified_answers(
    questions: Sequence[Question],
    candidates: Iterable[Candidate],
    verifier: SQLVerifier,
    *,
    limit: int = 1,
    seed: int = 0,
    completion: Literal["sql", "text"] = "sql",
    on_progress: Callable[[int], None] | None = None,
) -> list[Question]:
    """Questions whose `gold_sql` is an answer that a model wrote and execution found right.

    Of the correct answers to a question, each canonical query counts once, and `limit` of them are
    drawn at random. An answer that the model did not end by itself is not used, and an undetermined
    one is not correct.

    Args:
        questions: with their gold SQL.
        candidates: of those questions, from any model.
        verifier: executes and compares.
        limit: answers per question at most.
        seed: of the draw, which does not depend on the order of questions or candidates.
        completion: what is trained on: the query alone, or all that the model wrote, the reasoning
            before the query included (arXiv 2203.14465), as the question's `completion`.
        on_progress: called with the number of answers verified since the last call.

    Returns:
        The answered questions in their order; the second answer to a question has its
        `question_id` with `-2`.

    Raises:
        InputError: `limit` is below 1, a candidate is for a question that is not given, or two
            questions have one id.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> from sense_trl.database import DatabaseCatalog
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> question = Question("q1", "pets", "How old is Rex?", "SELECT T1.age FROM pet AS T1")
        >>> texts = ["SELECT name FROM pet", "SELECT age FROM pet WHERE name = 'Rex'"]
        >>> answers = [Candidate("q1", i, sql, sql, "weak", "m") for i, sql in enumerate(texts)]
        >>> with DatabaseCatalog.from_path(folder) as catalog, SQLVerifier(catalog) as verifier:
        ...     [q.gold_sql for q in select_verified_answers([question], answers, verifier)]
        ["SELECT age FROM pet WHERE name = 'Rex'"]
    """
    if limit < 1:
        raise InputError(f"`limit` is {limit}; expected at least one answer per question.")
    groups = group_by_question(questions, candidates)
    asked: list[tuple[Question, Candidate]] = []
    for question in questions:
        dialect = verifier.catalog.dialect(question.db_id)
        distinct: dict[str, Candidate] = {}
        for candidate in groups[question.question_id]:
            if find_fault(candidate) is None:
                distinct.setdefault(identify_query(candidate.sql, dialect), candidate)
        # The draw is by what the queries say, not by which of them came first.
        asked += [(question, distinct[identity]) for identity in sorted(distinct)]
    requests = [VerificationRequest(q.db_id, c.sql, q.gold_sql) for q, c in asked]
    correct: dict[str, list[Candidate]] = {}
    found = verifier.verify(requests, on_progress=on_progress)
    for (question, candidate), verification in zip(asked, found, strict=True):
        if verification.verdict is Verdict.CORRECT:
            correct.setdefault(question.question_id, []).append(candidate)
    answers = []
    for question in questions:
        own = correct.get(question.question_id, [])
        drawn = question_rng(seed, question.question_id).sample(own, min(limit, len(own)))
        for number, candidate in enumerate(drawn, start=1):
            mark = "" if number == 1 else f"-{number}"
            name = f"{question.question_id}{mark}"
            text = candidate.text.strip() if completion == "text" else None
            answers.append(
                replace(question, question_id=name, gold_sql=candidate.sql, completion=text)
            )
    return answers
