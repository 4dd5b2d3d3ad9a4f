"""`build_strong_data`: a strong model invents databases with questions (SENSE's strong data).

Each call shows the model two training examples and asks for a domain, a schema, a question of a
level and its SQL (Yang et al., "Synthesizing Text-to-SQL Data from Weak and Strong LLMs", ACL 2024,
arXiv 2408.03256). The paper has no rows to check the SQL on; here the database is made, with rows
in which the query can find something, so that an example must run and answer.

A data set depends on the answers alone, and those are kept: an interrupted build continues, and
ends with the same files.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from sense_trl._files import write_text_atomically
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion, SamplingConfig, SQLGenerator
from sense_trl.generation.recorded_generator import RecordedGenerator
from sense_trl.prompts import Messages, get_prompt
from sense_trl.questions import Question
from sense_trl.schema.formats import format_schema
from sense_trl.schema.schema import get_schema
from sense_trl.sql.parsing import SQLParseError
from sense_trl.synthesis.example import Provenance, SynthesizedExample, write_examples
from sense_trl.synthesis.filters.agreement import RoundTripFilter
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import (
    ContaminationFilter,
    DuplicateFilter,
    ExampleFilter,
    ExecutionFilter,
    FilterAccount,
    FilterPipeline,
    OneSelectFilter,
)
from sense_trl.synthesis.filters.sql_template import get_sql_template
from sense_trl.synthesis.output_folder import open_output_folder
from sense_trl.synthesis.strong.config import StrongDataConfig
from sense_trl.synthesis.strong.domains import (
    OVERUSED_DOMAINS,
    SUGGESTED_DOMAINS,
    DomainLedger,
)
from sense_trl.synthesis.strong.level import Level, get_level
from sense_trl.synthesis.strong.prompt import (
    SHOWN_DOMAIN,
    AnswerError,
    StrongAnswer,
    get_strong_prompt,
    is_complete,
    parse_answer,
)
from sense_trl.synthesis.strong.schema_design import DesignError, SchemaDesign, parse_design
from sense_trl.synthesis.strong.spider_tables import get_spider_record
from sense_trl.synthesis.strong.synthetic_database import create_database
from sense_trl.synthesis.strong.value_hints import get_example_values, get_wanted_values
from sense_trl.verification.verifier import SQLVerifier

_DIALECT: Final = "sqlite"
_EXAMPLES_SHOWN: Final = 2
# Databases that are open at a time.
_CHUNK: Final = 50
_UNSAFE: Final = re.compile(r"[^a-z0-9]+")
# What `_Build.read` calls databases.
_OWN_FOLDERS: Final = "*_[0-9][0-9][0-9][0-9][0-9]"


@dataclass(frozen=True, slots=True)
class StrongDataResult:
    """The outcome of a build: examples and counts.

    Attributes:
        examples: what was kept, in the order of the calls.
        account: the counts, as `account.json` has them.
    """

    examples: list[SynthesizedExample]
    account: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Draft:
    """An answer that has all its parts, and a schema that can be built."""

    call: int
    answer: StrongAnswer
    design: SchemaDesign
    example: SynthesizedExample


def build_strong_data(
    generator: SQLGenerator,
    examples: Sequence[Question],
    output_dir: str | Path,
    config: StrongDataConfig | None = None,
    *,
    excluded: Iterable[Question] = (),
    num_workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> StrongDataResult:
    """Ask a model for data points, make their databases, and keep what holds.

    Written to `output_dir`: `questions.jsonl` (for `load_questions` and `load_examples`),
    `databases/<db_id>/<db_id>.sqlite`, `tables.json` (Spider's format), `rejected.jsonl` (what went
    out, with its reason), `account.json` (the counts) and `answers-<model>.jsonl` (what the model
    wrote: delete it to ask anew).

    An answer goes out by `"answer"` (see `AnswerError`, and `"unfinished"`), `"domain"`
    (`"closed_domain"`), `"schema"` (see `DesignError`) or one of the filters `one_select`,
    `contamination`, `duplicate`, `execution` and `round_trip`. The level of an example is that of
    the query that was written, whatever was asked for.

    Args:
        generator: the strong model. One with seeds (`OpenAIGenerator` sends them) gives the same
            answers again as far as its server does.
        examples: training questions with gold SQL, of which each call shows two.
        output_dir: the folder; one that holds a build continues it.
        config: how to ask and what to keep.
        excluded: evaluation sets that nothing may leak.
        num_workers: processes that run the SQL, see `SQLVerifier`.
        on_progress: called with the number of calls answered since the last call.

    Raises:
        InputError: fewer than two examples, or `output_dir` cannot be written to or is being
            written to by another run.
        ModelError: the model does not answer. What it answered before is kept.
    """
    config = config or StrongDataConfig()
    if len(examples) < _EXAMPLES_SHOWN:
        raise InputError(
            f"`examples` has {len(examples)} questions; each call shows {_EXAMPLES_SHOWN}. Give a "
            "file of training questions."
        )
    index = EvaluationIndex(excluded, dialect=_DIALECT, min_similarity=config.min_similarity)
    # Before a call is paid for that could not be written down.
    with open_output_folder(output_dir) as output:
        recorded = RecordedGenerator(
            output / f"answers-{_slug(generator.name)}.jsonl",
            generator.name,
            lambda: generator,
            chunk_size=config.calls_per_round,
        )
        build = _Build(recorded, output, config)
        drafts = build.read(build.ask(examples, on_progress))
        drafts = build.sift(drafts, index)
        kept = build.execute(drafts, num_workers)
        return build.write(kept, {draft.example.db_id: draft.design for draft in drafts})


class _Build:
    """The steps of one build, and what went out in them."""

    def __init__(
        self, generator: RecordedGenerator, output: Path, config: StrongDataConfig
    ) -> None:
        self._generator = generator
        self._output = output
        self._databases = output / "databases"
        self._config = config
        closed = (*OVERUSED_DOMAINS, SHOWN_DOMAIN)
        self._ledger = DomainLedger(config.max_per_domain, closed=closed)
        self._domains: list[str] = []
        if config.suggest_domains:
            rng = random.Random(config.seed)
            self._domains = rng.sample(SUGGESTED_DOMAINS, len(SUGGESTED_DOMAINS))
        self._account = FilterAccount(
            removed={n: Counter() for n in ("answer", "domain", "schema")}
        )
        self._rejected: dict[int, dict[str, Any]] = {}
        self._asked: Counter[str] = Counter()

    # ------------------------------------------------------------------ asking

    def ask(
        self, examples: Sequence[Question], on_progress: Callable[[int], None] | None
    ) -> Iterator[tuple[int, StrongAnswer]]:
        """Yield the answers that have all parts and an open domain, in the order of the calls."""
        config = self._config
        sampling = SamplingConfig(
            1, config.temperature, config.top_p, config.max_new_tokens, config.seed
        )
        for start in range(0, config.num_calls, config.calls_per_round):
            calls = range(start, min(start + config.calls_per_round, config.num_calls))
            closed = self._ledger.closed
            prompts = [self._prompt(call, examples, closed) for call in calls]
            answers = self._generator.generate(prompts, sampling)
            for call, (completion,) in zip(calls, answers, strict=True):
                answer = self._admit(call, completion)
                if answer is not None:
                    yield call, answer
            if on_progress is not None:
                on_progress(len(calls))

    def _prompt(self, call: int, examples: Sequence[Question], closed: list[str]) -> Messages:
        rng = random.Random(f"{self._config.seed}/{call}")
        level = rng.choice(list(Level))
        self._asked[level] += 1
        shown = rng.sample(examples, _EXAMPLES_SHOWN)
        domain = self._domains[call % len(self._domains)] if self._domains else None
        return get_strong_prompt(call + 1, shown, level, closed, domain)

    def _admit(self, call: int, completion: Completion) -> StrongAnswer | None:
        if not completion.finished and not is_complete(completion.text):
            self._reject(call, "answer", "unfinished", completion.text[-200:])
            return None
        try:
            answer = parse_answer(completion.text)
        except AnswerError as error:
            self._reject(call, "answer", error.reason, str(error))
            return None
        if not self._ledger.admit(answer.domain):
            self._reject(call, "domain", "closed_domain", answer.domain)
            return None
        return answer

    # ------------------------------------------------------------------ checking

    def read(self, answers: Iterable[tuple[int, StrongAnswer]]) -> list[_Draft]:
        """The answers whose schema can be built."""
        drafts = []
        for call, answer in answers:
            try:
                design = parse_design(answer.ddl)
            except DesignError as error:
                self._reject(call, "schema", error.reason, str(error))
                continue
            name = _slug(answer.domain) or "domain"
            example = SynthesizedExample(
                answer.question,
                answer.sql,
                f"{name}_{call:05d}",
                None,
                Provenance("strong", self._generator.name, self._config.seed),
            )
            drafts.append(_Draft(call, answer, design, example))
        return drafts

    def sift(self, drafts: list[_Draft], index: EvaluationIndex) -> list[_Draft]:
        """Those that are one query, new, and no leak."""
        filters: list[ExampleFilter] = [
            OneSelectFilter(_DIALECT),
            ContaminationFilter(index),
            DuplicateFilter(_DIALECT, per_database=False),
        ]
        return self._apply(filters, drafts)

    def execute(self, drafts: list[_Draft], num_workers: int | None) -> list[SynthesizedExample]:
        """Those whose query answers on their database, which is made and, else, removed."""
        kept: list[SynthesizedExample] = []
        for start in range(0, len(drafts), _CHUNK):
            chunk = drafts[start : start + _CHUNK]
            kept += [draft.example for draft in self._execute_chunk(chunk, num_workers)]
        # Nothing was given to a filter without any draft.
        self._account.removed.setdefault(ExecutionFilter.name, Counter())
        names = {example.db_id for example in kept}
        # Also those that an earlier build with other settings kept.
        for folder in self._databases.glob(_OWN_FOLDERS):
            if folder.name not in names:
                shutil.rmtree(folder)
        return [_labelled(example) for example in kept]

    def _execute_chunk(self, drafts: list[_Draft], num_workers: int | None) -> list[_Draft]:
        buildable = [draft for draft in drafts if self._fill(draft, 0)]
        paths = {draft.example.db_id: self._path(draft) for draft in buildable}
        limits = ExecutionLimits(timeout_s=self._config.timeout_s)
        with ExitStack() as stack:
            catalog = stack.enter_context(DatabaseCatalog(paths, limits=limits))
            verifier = stack.enter_context(SQLVerifier(catalog, num_workers=num_workers))
            execution = ExecutionFilter(verifier)
            pending = buildable
            for fill in range(1, self._config.max_fills):
                verdicts = execution.check([draft.example for draft in pending])
                pending = [
                    draft
                    for draft, verdict in zip(pending, verdicts, strict=True)
                    if verdict.reason in _FAULTS_OF_ROWS
                ]
                for draft in pending:
                    self._fill(draft, fill)
            filters: list[ExampleFilter] = [execution]
            if self._config.num_round_trip_samples:
                filters.append(self._round_trip(catalog, verifier))
            return self._apply(filters, buildable)

    def _fill(self, draft: _Draft, fill: int) -> bool:
        design, answer = draft.design, draft.answer
        try:
            create_database(
                self._path(draft),
                design,
                num_rows=self._config.num_rows,
                seed=random.Random(f"{self._config.seed}/{draft.call}/{fill}").getrandbits(32),
                wanted=get_wanted_values(design, answer.sql, _DIALECT),
                examples=get_example_values(design, answer.ddl),
            )
        except DesignError as error:
            self._reject(draft.call, "schema", error.reason, str(error))
            return False
        return True

    def _round_trip(self, catalog: DatabaseCatalog, verifier: SQLVerifier) -> RoundTripFilter:
        def ask(example: SynthesizedExample) -> Messages:
            schema = get_schema(catalog.engine(example.db_id), example.db_id)
            return get_prompt(example.question, format_schema(schema, style="ddl"))

        config = self._config
        sampling = SamplingConfig(
            config.num_round_trip_samples,
            config.temperature,
            config.top_p,
            config.max_new_tokens,
            config.seed,
        )
        return RoundTripFilter(self._generator, verifier, ask, sampling)

    def _apply(self, filters: list[ExampleFilter], drafts: list[_Draft]) -> list[_Draft]:
        pipeline = FilterPipeline(filters)
        result = pipeline.apply([draft.example for draft in drafts])
        by_id = {draft.example.db_id: draft for draft in drafts}
        for rejection in result.rejected:
            call = by_id[rejection.example.db_id].call
            self._rejected[call] = {"call": call, **rejection.as_json()}
        for name, reasons in pipeline.account.removed.items():
            self._account.removed.setdefault(name, Counter()).update(reasons)
        return [replace(by_id[example.db_id], example=example) for example in result.kept]

    def _reject(self, call: int, name: str, reason: str, detail: str) -> None:
        self._account.removed[name][reason] += 1
        why = {"removed_by": name, "reason": reason, "detail": detail}
        self._rejected[call] = {"call": call, **why}

    # ------------------------------------------------------------------ writing

    def write(
        self, kept: list[SynthesizedExample], designs: dict[str, SchemaDesign]
    ) -> StrongDataResult:
        """Write the files of the data set."""
        self._account.num_examples = self._config.num_calls
        self._account.num_kept = len(kept)
        levels = Counter(example.level for example in kept)
        account = {
            "generator": self._generator.name,
            **self._account.as_json(),
            "levels": {
                level: {"asked": self._asked[level], "kept": levels[level]} for level in Level
            },
            "domains": self._ledger.counts,
            "config": asdict(self._config),
        }
        tables = [get_spider_record(e.db_id, designs[e.db_id]) for e in kept]
        write_text_atomically(self._output / "tables.json", json.dumps(tables, indent=1) + "\n")
        lines = [json.dumps(self._rejected[call]) + "\n" for call in sorted(self._rejected)]
        write_text_atomically(self._output / "rejected.jsonl", "".join(lines))
        write_examples(self._output / "questions.jsonl", kept)
        text = json.dumps(account, indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(self._output / "account.json", text)
        return StrongDataResult(kept, account)

    def _path(self, draft: _Draft) -> Path:
        db_id = draft.example.db_id
        return self._databases / db_id / f"{db_id}.sqlite"


# What other rows may change.
_FAULTS_OF_ROWS: Final = frozenset(
    {"empty", "nothing_found", "gold_limit_tie", "gold_not_deterministic"}
)


def _slug(text: str) -> str:
    return _UNSAFE.sub("_", text.lower()).strip("_")[:40]


def _labelled(example: SynthesizedExample) -> SynthesizedExample:
    """With the level and the template of its query, which parses by now."""
    try:
        template = get_sql_template(example.sql, _DIALECT)
    except SQLParseError:
        # What SQLite runs and sqlglot reads, it cannot always write.
        template = None
    return replace(
        example,
        level=str(get_level(example.sql, _DIALECT)),
        provenance=replace(example.provenance, template=template),
    )
