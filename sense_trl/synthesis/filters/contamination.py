"""`EvaluationIndex`: which synthesised examples are too close to an evaluation set.

Training on what a model is evaluated on measures memory. So an example goes out where its wording
is an evaluation question's, where it is nearly one, or where its SQL is an evaluation query's up
to constants.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.errors import InputError
from sense_trl.questions import Question
from sense_trl.sql.dialects import Dialects, get_dialect
from sense_trl.sql.parsing import SQLParseError
from sense_trl.synthesis.filters.normal_template import (
    NormalTemplate,
    TemplateIndex,
    get_normal_template,
)

_WORD: Final = re.compile(r"\w+")
_NGRAM_TOKENS: Final = 3


@dataclass(frozen=True, slots=True)
class Contamination:
    """The evaluation question that an example is too close to, and in what way.

    Attributes:
        kind: `"same_question"`, `"similar_question"` or `"same_template"`.
        question_id: the evaluation question it is close to.
        similarity: of the two questions' trigrams, in [0, 1]; 1 for the same wording, `None` where
            the SQL is what is close.
    """

    kind: str
    question_id: str
    similarity: float | None


class EvaluationIndex:
    """Finds examples that leak an evaluation set, whatever database they are asked of.

    Two questions are similar where the sets of word trigrams that they have (after
    `normalize_question`, with a mark for their beginning and their end) have a Jaccard similarity
    of `min_similarity` or more. The SQL leaks where it is an evaluation query's up to constants and
    spelling (`get_normal_template`): aliases or none, other joins, sides and orders.

    Of Spider's 8,659 training questions, 7 have the wording of a dev question, 3 more reach 0.6
    (one word of twelve differs) and 37 reach 0.5, most of which ask for something else; 14 have the
    template of a dev query, such as `SELECT COUNT(*) FROM courses`.

    Args:
        questions: the evaluation sets.
        dialect: sqlglot dialect of all SQL, or a function that tells it by `db_id`.
        min_similarity: share in (0, 1] from which on a question is a near-duplicate.

    Raises:
        InputError: `min_similarity` is out of its range.

    Example:
        >>> dev = [Question("dev-1", "concerts", "How many singers are there?", "SELECT 1")]
        >>> index = EvaluationIndex(dev, dialect="sqlite")
        >>> index.find("how many singers are there", "SELECT count(*) FROM singer")
        Contamination(kind='same_question', question_id='dev-1', similarity=1.0)
    """

    def __init__(
        self, questions: Iterable[Question], *, dialect: Dialects, min_similarity: float = 0.6
    ) -> None:
        if not 0.0 < min_similarity <= 1.0:
            raise InputError(
                f"`min_similarity` is {min_similarity}; expected a share above 0 and at most 1, "
                "e.g. 0.6."
            )
        self._dialect = dialect
        self._min_similarity = min_similarity
        self._wordings: dict[str, str] = {}
        self._templates = TemplateIndex()
        self._ngrams: list[tuple[str, frozenset[tuple[str, ...]]]] = []
        self._with_ngram: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for question in questions:
            self._add(question)

    def find(self, question: str, sql: str, db_id: str = "") -> Contamination | None:
        """Find what an example is too close to, the nearest kind first; `None` if to nothing.

        SQL that cannot be parsed has no template and is compared by its question alone. `db_id`
        matters where each database has its dialect.
        """
        wording = normalize_question(question)
        if wording in self._wordings:
            return Contamination("same_question", self._wordings[wording], 1.0)
        similarity, question_id = self._most_similar(wording)
        if similarity >= self._min_similarity:
            return Contamination("similar_question", question_id, similarity)
        try:
            template = get_normal_template(sql, get_dialect(self._dialect, db_id))
            found = self._templates.find(template)
        except SQLParseError:
            return None
        return None if found is None else Contamination("same_template", found, None)

    def _add(self, question: Question) -> None:
        wording = normalize_question(question.question)
        if wording not in self._wordings:
            self._wordings[wording] = question.question_id
            ngrams = _ngrams(wording)
            for ngram in ngrams:
                self._with_ngram[ngram].append(len(self._ngrams))
            self._ngrams.append((question.question_id, ngrams))
        with contextlib.suppress(SQLParseError):
            dialect = get_dialect(self._dialect, question.db_id)
            template = get_normal_template(question.gold_sql, dialect)
            self._templates.add(template, question.question_id)

    def _most_similar(self, wording: str) -> tuple[float, str]:
        ngrams = _ngrams(wording)
        shared = Counter(number for ngram in ngrams for number in self._with_ngram.get(ngram, ()))
        best = (0.0, "")
        for number, count in shared.items():
            question_id, others = self._ngrams[number]
            similarity = count / (len(ngrams) + len(others) - count)
            if similarity > best[0]:
                best = (similarity, question_id)
        return best


def find_evaluated(
    questions: Iterable[Question], evaluated: Iterable[Question], *, dialect: Dialects
) -> dict[str, str]:
    """Find questions that are evaluation questions on the same database, however spelled.

    Those are they that have the wording of one (see `normalize_question`) or its SQL, constants
    included (see `get_normal_template`): what a split into training and evaluation must not part.

    Args:
        questions: to train on.
        evaluated: the evaluation questions.
        dialect: sqlglot dialect of all SQL, or a function that tells it by `db_id`; what cannot be
            parsed is compared by its wording.

    Returns:
        The id of an evaluation question by that of the question which it is.

    Example:
        >>> dev = [Question("dev-1", "pets", "How old is Rex?", "SELECT age FROM pet WHERE id = 1")]
        >>> sql = "SELECT p.age FROM pet AS p WHERE 1 = p.id"
        >>> find_evaluated([Question("q-7", "pets", "Rex's age", sql)], dev, dialect="sqlite")
        {'q-7': 'dev-1'}
    """
    wordings: dict[tuple[str, str], str] = {}
    queries: dict[str, TemplateIndex] = defaultdict(TemplateIndex)

    def read(question: Question) -> NormalTemplate:
        own = get_dialect(dialect, question.db_id)
        return get_normal_template(question.gold_sql, own, keeps_constants=True)

    for question in evaluated:
        wordings.setdefault((question.db_id, _wording(question)), question.question_id)
        with contextlib.suppress(SQLParseError):
            queries[question.db_id].add(read(question), question.question_id)
    found = {}
    for question in questions:
        same = wordings.get((question.db_id, _wording(question)))
        if same is None and question.db_id in queries:
            with contextlib.suppress(SQLParseError):
                same = queries[question.db_id].find(read(question))
        if same is not None:
            found[question.question_id] = same
    return found


def _wording(question: Question) -> str:
    """Its words; without any, the text as it is."""
    return normalize_question(question.question) or question.question


def normalize_question(question: str) -> str:
    """The words of a question in lower case, one space apart, without punctuation.

    Example:
        >>> normalize_question("  What's the NAME of each singer? ")
        'what s the name of each singer'
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", question).casefold()))


def _ngrams(wording: str) -> frozenset[tuple[str, ...]]:
    words: Sequence[str] = ["<", *wording.split(), ">"]
    last = max(1, len(words) - _NGRAM_TOKENS + 1)
    return frozenset(tuple(words[i : i + _NGRAM_TOKENS]) for i in range(last))
