"""Recursive distillation: a model writes data, critics sift it, a model trained on it goes on.

Wang 2023 (York University): in round k the model P_k writes questions with SQL from a few-shot
prompt; a pair is kept if its execution accuracy and its test-suite accuracy are 1; a model
fine-tuned on what was kept is P_{k+1}. Both critics need gold, so P_k also answers training
questions, whose answers they judge. What stands in for them where the model invented the question
(it executes to something, another sample agrees, most samples agree), starting from the base model
in each round, mixing with gold and stopping when dev accuracy falls are ours, after STaR-SQL
(arXiv 2502.13550) and ExeSQL (arXiv 2505.17231).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sense_trl._files import read_json, write_text_atomically
from sense_trl.errors import InputError
from sense_trl.generation.generator import SQLGenerator
from sense_trl.generation.recorded_generator import RecordedGenerator
from sense_trl.synthesis.example import SynthesizedExample, load_examples, write_examples
from sense_trl.synthesis.recursive.config import RecursionSettings
from sense_trl.synthesis.recursive.critics import Critics
from sense_trl.synthesis.recursive.data import METHOD, RecursionData
from sense_trl.synthesis.recursive.training_rows import TrainingRow, make_training_rows
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier

__all__ = [
    "BASE",
    "DevScore",
    "Learner",
    "RecursionData",
    "RecursionSettings",
    "Round",
    "TrainingRow",
    "distill_recursively",
    "get_best_round",
    "has_fallen",
]

# What `Round.model` says where nothing was trained.
BASE: Final = "base"


@dataclass(frozen=True, slots=True)
class DevScore:
    """Execution accuracy on the dev questions, with its 95 % interval, as shares."""

    execution_accuracy: float
    low: float
    high: float
    num_questions: int


@dataclass(frozen=True, slots=True)
class Round:
    """Record of a round: the model, its counts and its accuracy on dev.

    Attributes:
        number: 0 is the start: a model trained on gold alone, or the base model.
        model: folder of what was evaluated, relative to the run's; "base" for the base model.
        seed: of the round's sampling.
        db_ids: databases written about.
        inventions: of the invented pairs, how many are left after each critic, in order; the first
            entry is how many completions were written.
        answers: the same of the answers to training questions.
        num_kept: synthesised rows of this and the earlier rounds.
        num_synthesized_rows: of these, drawn to train on.
        num_gold_rows: gold rows trained on.
        dev: accuracy after training.
    """

    number: int
    model: str
    seed: int
    db_ids: tuple[str, ...]
    inventions: Mapping[str, int]
    answers: Mapping[str, int]
    num_kept: int
    num_synthesized_rows: int
    num_gold_rows: int
    dev: DevScore


class Learner(Protocol):
    """Interface to the model itself: sampling, training, evaluation."""

    def get_generator(self, model: Path) -> SQLGenerator:
        """Load a model to sample from."""

    def open_bar(self, total: int) -> AbstractContextManager[Callable[[int], object]]:
        """Show the progress of sampling for `total` prompts."""

    def train(self, rows: Sequence[TrainingRow], folder: Path) -> None:
        """Fine-tune the base model into `folder`; does nothing more if that is finished."""

    def evaluate(self, model: Path, folder: Path) -> DevScore:
        """Answer the dev questions; keeps what it needs to continue, and its records, there."""


def distill_recursively(
    base_model: Path,
    learner: Learner,
    data: RecursionData,
    settings: RecursionSettings,
    folder: Path,
    *,
    verifier: SQLVerifier,
    suite_verifier: SuiteVerifier,
    chunk_size: int = 8,
    on_round: Callable[[Round], object] = lambda finished: None,
) -> list[Round]:
    """Run the rounds, or what is left of them.

    Every round has a folder `round-<k>`: samples.jsonl (what the model wrote), kept.jsonl (what
    passed, with provenance), rejected.jsonl (what did not, with the reason), training.jsonl, the
    model, and the evaluation; rounds.json holds the table. A run that is interrupted anywhere
    continues with the same result, given the same arguments.

    Args:
        base_model: what every training starts from.
        learner: samples, trains, evaluates.
        data: questions, schemas and prompts.
        settings: see there.
        folder: for everything written; it belongs to one set of arguments.
        verifier: executes invented SQL.
        suite_verifier: judges answers to training questions, on the database and on neighbours.
        chunk_size: prompts sampled and written to disk together.
        on_round: called with each round as it is finished or read.

    Returns:
        The rounds, the start first. The last one may be worse than the one before it: that ends
        the rounds.

    Raises:
        InputError: a training question's database has no schema text.
    """
    missing = {question.db_id for question in data.gold} - data.schema_texts.keys()
    if missing:
        raise InputError(
            f"`schema_texts` lacks {sorted(missing)[0]!r}; give one for every database of the "
            "training questions."
        )
    critics = Critics(data, settings, verifier, suite_verifier)
    run = _Recursion(base_model, learner, data, settings, folder, critics, chunk_size)
    rounds: list[Round] = []
    kept: list[SynthesizedExample] = []
    for number in range(settings.num_rounds + 1):
        if has_fallen(rounds):
            break
        rounds.append(run.finish_round(number, rounds, kept))
        _write_rounds(folder / "rounds.json", rounds)
        on_round(rounds[-1])
    return rounds


def get_best_round(rounds: Sequence[Round]) -> Round:
    """The round with the highest dev accuracy; of equal ones the first."""
    return max(rounds, key=lambda finished: finished.dev.execution_accuracy)


def has_fallen(rounds: Sequence[Round]) -> bool:
    """Whether dev accuracy is lower after the last round than after the one before it."""
    return len(rounds) > 1 and (
        rounds[-1].dev.execution_accuracy < rounds[-2].dev.execution_accuracy
    )


def _write_rounds(path: Path, rounds: Sequence[Round]) -> None:
    table = {
        "rounds": [asdict(finished) for finished in rounds],
        "best_model": get_best_round(rounds).model,
        "dev_accuracy_fell": has_fallen(rounds),
    }
    write_text_atomically(path, json.dumps(table, indent=1))


@dataclass(frozen=True, slots=True)
class _Recursion:
    """One run: holds what the rounds share."""

    base_model: Path
    learner: Learner
    data: RecursionData
    settings: RecursionSettings
    folder: Path
    critics: Critics
    chunk_size: int

    def finish_round(
        self, number: int, rounds: Sequence[Round], kept: list[SynthesizedExample]
    ) -> Round:
        """Synthesise, train and evaluate; adds to `kept` what the round keeps."""
        folder = self.folder / f"round-{number}"
        db_ids: tuple[str, ...] = ()
        counts: dict[str, dict[str, int]] = {"inventions": {}, "answers": {}}
        if number:
            db_ids = self._get_batch(number)
            found, counts = self._synthesize(number, db_ids, rounds[-1], kept)
            kept += found
        model, rows = BASE, list[TrainingRow]()
        if number or not self.settings.skip_warm_up:
            model = f"{folder.name}/model"
            rows = make_training_rows(self.data, self.settings, number, kept)
            _write_lines(folder / "training.jsonl", map(asdict, rows))
            self.learner.train(rows, self.folder / model)
        sources = [row.source for row in rows if row.task == "answer"]
        return Round(
            number,
            model,
            self.settings.get_sampling(number).seed,
            db_ids,
            **counts,
            num_kept=len(kept),
            num_synthesized_rows=sources.count(METHOD),
            num_gold_rows=sources.count("gold"),
            dev=self.learner.evaluate(self._get_path(model), folder),
        )

    def _get_path(self, model: str) -> Path:
        return self.base_model if model == BASE else self.folder / model

    def _get_batch(self, number: int) -> tuple[str, ...]:
        """The databases of a round: the next of a shuffled circle of all of them."""
        db_ids = sorted({question.db_id for question in self.data.gold})
        self.settings.get_random(0, "databases").shuffle(db_ids)
        size = math.ceil(len(db_ids) / self.settings.num_rounds)
        start = (number - 1) * size
        return tuple(db_ids[place % len(db_ids)] for place in range(start, start + size))

    def _synthesize(
        self,
        number: int,
        db_ids: Sequence[str],
        previous: Round,
        kept: Sequence[SynthesizedExample],
    ) -> tuple[list[SynthesizedExample], dict[str, dict[str, int]]]:
        """Let the last round's model write and the critics choose; examples kept, and counts."""
        folder = self.folder / f"round-{number}"
        kept_path, counts_path = folder / "kept.jsonl", folder / "critics.json"
        if counts_path.exists():
            counts = read_json(counts_path, "the counts of a round", "inventions", "answers")
            return load_examples(kept_path), counts
        model = self._get_path(previous.model)
        generator = RecordedGenerator(
            folder / "samples.jsonl",
            f"{self.base_model.name}, round {previous.number}",
            lambda: self.learner.get_generator(model),
            chunk_size=self.chunk_size,
            open_bar=self.learner.open_bar,
        )
        answers = self.critics.review_answers(number, generator, db_ids, kept)
        inventions = self.critics.review_inventions(number, generator, db_ids, kept)
        found = [*answers.kept, *inventions.kept]
        counts = {"inventions": inventions.counts, "answers": answers.counts}
        write_examples(kept_path, found)
        _write_lines(
            folder / "rejected.jsonl", (rejection.as_json() for rejection in inventions.rejected)
        )
        # Last: it says that the others are whole.
        write_text_atomically(counts_path, json.dumps(counts, indent=1))
        return found, counts


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomically(path, "".join(lines))
