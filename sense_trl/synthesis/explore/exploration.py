"""`explore_database`: questions and SQL about a database that nobody has asked anything yet.

DB-Explore (arXiv 2503.04959) without a language model: a walk over the schema's graph chooses
columns, a mined template or a grammar makes a query of them, the database says whether it returns
anything, and the question is written from the query. `instructions` has the same with a model.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sense_trl.synthesis.example import Provenance, SynthesizedExample
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.facts import DatabaseFacts
from sense_trl.synthesis.explore.phrases import PhraseBook
from sense_trl.synthesis.explore.redundancy import is_redundant
from sense_trl.synthesis.explore.rendering import CannotPhraseError, QuestionWriter
from sense_trl.synthesis.explore.sql_sampler import LEVELS, SQLSampler
from sense_trl.synthesis.explore.templates import (
    SQLTemplate,
    TemplateMiner,
    fill_template,
    get_complexity,
)
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import (
    PASSED,
    ContaminationFilter,
    DuplicateFilter,
    ExampleFilter,
    ExecutionFilter,
    FilterAccount,
    FilterPipeline,
    FilterVerdict,
    OneByOneFilter,
    OneSelectFilter,
    TemplateCapFilter,
)
from sense_trl.verification.verifier import SQLVerifier

_BATCH_SIZE: Final = 64
# The workers of a verifier have something to share.
_MIN_PART: Final = 8
# A database without rows gives nothing, however often it is asked.
_MAX_FRUITLESS: Final = 10 * _BATCH_SIZE


@dataclass(slots=True)
class ExplorationAccount:
    """Counts of attempts, and of what became of them.

    Attributes:
        num_attempts: queries that were to be drawn, or answers of a model that were asked for.
        not_made: attempts that gave no example, by reason.
        filters: what the filters made of the examples.
        num_surplus: examples that passed when there were enough.
    """

    num_attempts: int = 0
    not_made: Counter[str] = field(default_factory=Counter)
    filters: FilterAccount = field(default_factory=FilterAccount)
    num_surplus: int = 0

    def add(self, other: ExplorationAccount) -> None:
        """Add the counts of another database."""
        self.num_attempts += other.num_attempts
        self.not_made.update(other.not_made)
        self.filters.add(other.filters)
        self.num_surplus += other.num_surplus

    def as_json(self) -> dict[str, Any]:
        """The counts as plain JSON data."""
        return {
            "num_attempts": self.num_attempts,
            "not_made": dict(sorted(self.not_made.items())),
            "filters": self.filters.as_json(),
            "num_surplus": self.num_surplus,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExplorationAccount:
        """The inverse of `as_json`."""
        return cls(
            data["num_attempts"],
            Counter(data["not_made"]),
            FilterAccount.from_json(data["filters"]),
            data["num_surplus"],
        )


class ShapeCapFilter(OneByOneFilter):
    """Passes the first examples of each shape of a database, which their provenance names.

    Reason: `"shape_full"`. What has no template passes.

    Args:
        max_per_shape: how many.
    """

    name = "shape_cap"

    def __init__(self, max_per_shape: int) -> None:
        self._max_per_shape = max_per_shape
        self._counts: Counter[tuple[str, str]] = Counter()

    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        template = example.provenance.template
        if template is not None:
            if self._counts[example.db_id, template] == self._max_per_shape:
                return FilterVerdict(False, "shape_full", template)
            self._counts[example.db_id, template] += 1
        return PASSED


def make_filters(
    verifier: SQLVerifier,
    dialect: str,
    config: ExplorationConfig,
    evaluation: EvaluationIndex | None,
    *,
    is_trusted: bool = False,
) -> list[ExampleFilter]:
    """The filters of an exploration, in the order in which they are asked.

    Args:
        verifier: over the databases of the examples.
        dialect: of their SQL.
        config: how many examples of one template and of one shape are kept.
        evaluation: what must not leak.
        is_trusted: whether no model wrote the SQL, see `ExecutionFilter`.
    """
    filters: list[ExampleFilter] = [OneSelectFilter(dialect), DuplicateFilter(dialect)]
    if evaluation is not None:
        filters.append(ContaminationFilter(evaluation))
    return [
        *filters,
        ExecutionFilter(verifier, is_trusted=is_trusted),
        TemplateCapFilter(dialect, config.max_per_template),
        ShapeCapFilter(config.max_per_shape),
    ]


def explore_database(
    facts: DatabaseFacts,
    verifier: SQLVerifier,
    config: ExplorationConfig | None = None,
    *,
    templates: Sequence[SQLTemplate] = (),
    evaluation: EvaluationIndex | None = None,
    phrases: PhraseBook | None = None,
    account: ExplorationAccount | None = None,
) -> Iterator[SynthesizedExample]:
    """Make questions with SQL about one database, without a model.

    Each query is one SELECT that runs within the verifier's limits, has one answer (see
    `verify_sql`) and returns something. The levels (see `get_complexity`) are kept in balance as
    far as the database allows. The same arguments give the same examples.

    Args:
        facts: the database; its schema's `db_id` is the one that the verifier's catalog knows.
        verifier: runs the queries.
        config: how many examples, and how they are drawn.
        templates: mined from training queries, of any database.
        evaluation: what must not leak into training data.
        phrases: what tables and columns are called; the words of their names if not given.
        account: counts are added to it as the iterator goes on.

    Yields:
        Examples as they are made; fewer than asked for where the attempts are used up, or where
        640 of them in a row gave nothing.

    Raises:
        InputError: the catalog does not know the database, or an option is out of its range.
        DatabaseError: the database cannot be read.
    """
    config = ExplorationConfig() if config is None else config
    account = ExplorationAccount() if account is None else account
    db_id = facts.schema.db_id
    dialect = verifier.catalog.dialect(db_id)
    filters = make_filters(verifier, dialect, config, evaluation, is_trusted=True)
    pipeline = FilterPipeline(filters)
    account.filters = pipeline.account
    maker = _Maker(facts, config, templates, phrases)
    kept: Counter[str | None] = Counter({str(level): 0 for level in LEVELS})
    max_attempts = config.num_per_database * config.max_attempts_per_question
    last_kept = 0
    while (
        kept.total() < config.num_per_database
        and account.num_attempts < max_attempts
        and account.num_attempts - last_kept < _MAX_FRUITLESS
    ):
        # The levels that have the fewest examples first, as far as they have a chance.
        levels = _share_out(kept, min(_BATCH_SIZE, max_attempts - account.num_attempts))
        batch_end = account.num_attempts + len(levels)
        # Hardly more than are needed: on a large database, running the queries takes the time.
        while levels and (missing := config.num_per_database - kept.total()) > 0:
            made = []
            part = max(missing, _MIN_PART)
            for level in levels[:part]:
                example = maker.make(level, account.num_attempts)
                account.num_attempts += 1
                if isinstance(example, str):
                    account.not_made[example] += 1
                else:
                    made.append(example)
            levels = levels[part:]
            for example in pipeline.apply(made).kept:
                if kept.total() == config.num_per_database:
                    account.num_surplus += 1
                    continue
                kept[example.level] += 1
                last_kept = batch_end
                yield example


def _share_out(kept: Counter[str | None], num: int) -> list[int]:
    """Levels to draw: half of them evenly, half for what lags behind."""
    most = max(kept.values())
    missing = [level for level in LEVELS for _ in range(most - kept[str(level)])]
    lagging = [missing[i * len(missing) // num] for i in range(num)] if missing else []
    return [lagging[i] if lagging and i % 2 else LEVELS[i // 2 % len(LEVELS)] for i in range(num)]


class _Maker:
    """Makes one example at a time."""

    def __init__(
        self,
        facts: DatabaseFacts,
        config: ExplorationConfig,
        templates: Sequence[SQLTemplate],
        phrases: PhraseBook | None,
    ) -> None:
        self._facts = facts
        self._config = config
        self._sampler = SQLSampler(facts)
        self._miner = TemplateMiner(facts.graph)
        roles = {name: column.role for name, column in facts.columns.items()}
        self._writer = QuestionWriter(facts.graph, phrases, roles=roles)
        self._templates: dict[int, list[SQLTemplate]] = {level: [] for level in LEVELS}
        for template in templates:
            if template.dialect == facts.schema.dialect:
                self._templates[template.level].append(template)

    def make(self, level: int, attempt: int) -> SynthesizedExample | str:
        """An example, or the reason why there is none."""
        config, db_id = self._config, self._facts.schema.db_id
        seed = get_draw_seed(config.seed, db_id, attempt)
        rng = random.Random(seed)
        columns = self._facts.graph.sample(
            rng,
            min_columns=config.min_columns,
            max_columns=config.max_columns,
            restart=config.restart,
            weighted_share=config.weighted_share,
        )
        templates = self._templates[level]
        if templates and rng.random() < config.template_share:
            method = "explore_template"
            sql = fill_template(rng.choice(templates), self._facts, columns, rng)
        else:
            method = "explore_grammar"
            sql = self._sampler.sample(level, columns, rng)
        if sql is None:
            return "columns_do_not_fit"
        if is_redundant(sql, self._facts.schema.dialect):
            return "redundant"
        try:
            question = self._writer.write(sql, rng)
        except CannotPhraseError:
            return "no_words"
        shape = self._miner.mine(sql)
        # The shape as it came out: two places may have been filled with one column.
        template = None if shape is None else shape.template_id
        names = tuple(map(str, columns))
        origin = Provenance(method, None, seed, names, template)
        found = get_complexity(sql, self._facts.schema.dialect)
        return SynthesizedExample(question, sql, db_id, str(found), origin)


def get_draw_seed(seed: int, db_id: str, attempt: int) -> int:
    """The seed of one attempt, whatever came before it."""
    digest = hashlib.sha256(f"{seed}\x00{db_id}\x00{attempt}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
