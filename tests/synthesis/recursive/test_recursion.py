"""Rounds of recursive distillation with a scripted model: what is kept, counted and continued."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import Messages, get_prompt
from sense_trl.questions import Question, load_questions
from sense_trl.synthesis.example import load_examples
from sense_trl.synthesis.recursive.recursion import (
    DevScore,
    RecursionData,
    RecursionSettings,
    Round,
    TrainingRow,
    distill_recursively,
    get_best_round,
)
from sense_trl.verification.suite.instances import SuiteSettings
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier

PETS = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Zoe', 9);
"""
GOLD = [
    Question("g1", "pets", "Who is older than 4?", "SELECT name FROM pet WHERE age > 4"),
    Question("g2", "pets", "How many pets are there?", "SELECT COUNT(*) FROM pet"),
]
DEV = [Question("d1", "pets", "What is the highest age?", "SELECT MAX(age) FROM pet")]

# What the model invents, and what it answers to a question. Of four samples each.
INVENTED = [
    "What are the names of all pets?\nSQL: SELECT name FROM pet",
    "What are all ages?\nSQL: SELECT age FROM pets",  # no such table
    "Tell me the highest age.\nSQL: SELECT MAX(age) FROM pet WHERE id > 0; DROP TABLE pet",
    "I cannot help with that.",
]
ANSWERS = {
    "Who is older than 4?": [
        "SELECT name FROM pet WHERE age != 3",  # right on the database, not on neighbours
        "SELECT name FROM pet WHERE 4 < age",  # gold in another spelling
        "SELECT p.name FROM pet AS p WHERE NOT p.age <= 4",  # new
        "SELECT age FROM pet",
    ],
    "How many pets are there?": ["SELECT COUNT(id) FROM pet"] * 4,
    "What are the names of all pets?": ["SELECT name FROM pet WHERE id"] * 2 + ["SELECT 1"] * 2,
}


class Stop(Exception):
    """Stands for a crash."""


class ScriptedLearner:
    """Writes what stands above; training and evaluation are files. Stops after `patience` acts."""

    def __init__(self, scores: Sequence[float], *, patience: int = 10**6) -> None:
        self.scores = scores
        self.patience = patience
        self.loaded: list[str] = []
        self.bars: list[int] = []
        self.name = "scripted"

    def _act(self) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise Stop

    def get_generator(self, model: Path) -> Any:
        assert model.name == "base" or (model / "weights").is_file()
        self.loaded.append("/".join(model.parts[-2:]))
        return self

    def open_bar(self, total: int) -> Any:
        self.bars.append(total)
        return nullcontext(self.bars.append)

    def generate(
        self, prompts: Sequence[Messages], sampling: SamplingConfig, **options: Any
    ) -> list[list[Completion]]:
        self._act()
        return [
            [Completion(text, 9, True) for text in self._write(prompt[-1]["content"])]
            for prompt in prompts
        ]

    def _write(self, asked: str) -> list[str]:
        return INVENTED if asked == "Question:" else ANSWERS.get(asked, ["SELECT 0"] * 4)

    def train(self, rows: Sequence[TrainingRow], folder: Path) -> None:
        if not (folder / "weights").exists():
            self._act()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_text(str(len(rows)))
            self._act()

    def evaluate(self, model: Path, folder: Path) -> DevScore:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "evaluation").exists():
            self._act()
            (folder / "evaluation").touch()
        score = self.scores[int(folder.name.removeprefix("round-"))]
        return DevScore(score, 0.0, 1.0, 40)


@pytest.fixture
def run(fresh_db: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., list[Round]]]:
    data = RecursionData(
        GOLD,
        DEV,
        {"pets": "pet(id, name, age)"},
        lambda question: get_prompt(question.question, "pet(id, name, age)"),
        "sqlite",
    )
    with (
        DatabaseCatalog.from_path(fresh_db(PETS, name="pets")) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
        SuiteVerifier(catalog, num_workers=0, settings=SuiteSettings(num_instances=4)) as suite,
    ):

        def start(
            learner: ScriptedLearner, folder: str, *, chunk_size: int = 8, **changes: Any
        ) -> list[Round]:
            settings = {"num_rounds": 2, "num_samples": 4, "prompts_per_database": 1, **changes}
            return distill_recursively(
                tmp_path / "base",
                learner,
                data,
                RecursionSettings(**settings),
                tmp_path / folder,
                verifier=verifier,
                suite_verifier=suite,
                chunk_size=chunk_size,
            )

        yield start


def test_two_rounds_by_hand(run: Callable[..., list[Round]], tmp_path: Path) -> None:
    learner = ScriptedLearner([0.1, 0.2, 0.3])
    start, first, second = run(learner, "run", num_examples=1)
    folder = tmp_path / "run"
    # Each round is sampled from the model of the one before.
    assert learner.loaded == ["round-0/model", "round-1/model"]
    assert (start.num_gold_rows, start.num_synthesized_rows, start.inventions) == (2, 0, {})
    assert first.inventions == {
        "written": 4,
        "readable": 3,
        "one_select": 2,  # a DROP behind a query is no query
        "contamination": 2,
        "execution": 1,  # there is no table "pets"
        "duplicate": 1,
        "template_cap": 1,
        "round_trip": 1,
        "self_consistency": 1,  # two of four agree
    }
    assert first.answers == {
        "written": 8,
        "finished": 8,
        "execution": 7,
        "suite": 6,  # != 3 is refuted by a neighbour
        "new": 2,  # 4 < age is gold, COUNT(id) comes four times
    }
    kept = load_examples(folder / "round-1" / "kept.jsonl")
    assert [example.sql for example in kept] == [
        "SELECT p.name FROM pet AS p WHERE NOT p.age <= 4",
        "SELECT COUNT(id) FROM pet",
        "SELECT name FROM pet",
    ]
    assert kept[0].provenance.verdicts == {"execution": "correct", "suite": "correct"}
    assert kept[2].provenance.verdicts["self_consistency"] == "2 of 4 samples agree"
    assert kept[2].provenance.generator == "base, round 0"
    assert kept[2].provenance.seed == 1
    assert [q.question for q in load_questions(folder / "round-1" / "kept.jsonl")][2] == (
        "What are the names of all pets?"
    )
    rejected = (folder / "round-1" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["removed_by"] for line in rejected] == ["execution", "one_select"]
    # One gold row, one kept row: of three kept, two are drawn.
    assert (first.num_kept, first.num_gold_rows, first.num_synthesized_rows) == (3, 2, 2)
    # The second round writes the same, so that nothing is new.
    assert (second.num_kept, second.answers["new"], second.inventions["duplicate"]) == (3, 0, 0)
    assert get_best_round([start, first, second]) is second
    table = json.loads((folder / "rounds.json").read_text())
    assert (table["best_model"], table["dev_accuracy_fell"]) == ("round-2/model", False)
    assert table["rounds"][1]["inventions"] == first.inventions


def test_training_rows_answer_and_invent(run: Callable[..., list[Round]], tmp_path: Path) -> None:
    run(ScriptedLearner([0, 0]), "run", num_rounds=1, invention_share=1.0, num_examples=1)
    lines = (tmp_path / "run" / "round-1" / "training.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [row for row in rows if row["task"] == "answer"]
    assert [row["source"] for row in answers] == ["gold", "gold", "recursion", "recursion"]
    assert answers[0]["prompt"] == get_prompt(GOLD[0].question, "pet(id, name, age)")
    assert answers[0]["completion"] == GOLD[0].gold_sql
    inventions = [row for row in rows if row["task"] == "invent"]
    assert inventions
    for row in inventions:
        assert row["prompt"][-1]["content"] == "Question:"
        # What is to be written does not stand in the prompt, nor does another answer to it.
        assert row["completion"].split("\n")[0] not in row["prompt"][2]["content"]


def test_what_is_close_to_dev_is_not_kept(
    run: Callable[..., list[Round]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = "Give the top age of all.\nSQL: SELECT MAX(age) FROM pet"
    monkeypatch.setattr(ScriptedLearner, "_write", lambda self, asked: [leak] * 4)
    (_, first) = run(ScriptedLearner([0, 0]), "run", num_rounds=1)
    assert (first.inventions["one_select"], first.inventions["contamination"]) == (4, 0)
    (line, *_) = (tmp_path / "run" / "round-1" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "same_template"


def test_rounds_stop_when_dev_accuracy_falls(
    run: Callable[..., list[Round]], tmp_path: Path
) -> None:
    rounds = run(ScriptedLearner([0.2, 0.2, 0.1, 0.9]), "run", num_rounds=3)
    assert [finished.dev.execution_accuracy for finished in rounds] == [0.2, 0.2, 0.1]
    table = json.loads((tmp_path / "run" / "rounds.json").read_text())
    # Of two that are equally good the one that took less.
    assert (table["best_model"], table["dev_accuracy_fell"]) == ("round-0/model", True)
    assert not (tmp_path / "run" / "round-3").exists()


def test_without_a_warm_up_the_base_model_writes_first(
    run: Callable[..., list[Round]], tmp_path: Path
) -> None:
    learner = ScriptedLearner([0, 0])
    (start, _) = run(learner, "run", num_rounds=1, skip_warm_up=True)
    assert (start.model, start.num_gold_rows) == ("base", 0)
    assert learner.loaded == [f"{tmp_path.name}/base"]


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_crash_after_any_act_changes_nothing(
    run: Callable[..., list[Round]], tmp_path: Path
) -> None:
    scores = [0.1, 0.2, 0.3]
    whole = run(ScriptedLearner(scores), "whole", chunk_size=1)
    patience = 0
    while True:
        folder = f"crashed-{patience}"
        try:
            run(ScriptedLearner(scores, patience=patience), folder, chunk_size=1)
            break
        except Stop:
            assert run(ScriptedLearner(scores), folder, chunk_size=1) == whole
        assert _contents(tmp_path / folder) == _contents(tmp_path / "whole")
        patience += 1
    # Three trainings of two acts, three evaluations, and the samples of two rounds.
    assert patience > 12
    # One crash after the other, each two acts on.
    for _ in range(patience):
        try:
            run(ScriptedLearner(scores, patience=2), "patched", chunk_size=1)
            break
        except Stop:
            continue
    assert _contents(tmp_path / "patched") == _contents(tmp_path / "whole")


def test_databases_take_turns() -> None:
    from sense_trl.synthesis.recursive.recursion import _Recursion

    gold = [Question(f"q{i}", f"db{i}", "?", "SELECT 1") for i in range(5)]
    data = RecursionData(gold, [], {}, lambda question: [], "sqlite")
    none: Any = None
    for num_rounds, sizes in ((1, [5]), (2, [3, 3]), (3, [2, 2, 2]), (6, [1] * 6)):
        settings = RecursionSettings(num_rounds=num_rounds)
        run = _Recursion(Path("m"), none, data, settings, Path("f"), none, 8)
        batches = [run._get_batch(number + 1) for number in range(num_rounds)]
        assert [len(set(batch)) for batch in batches] == sizes
        assert {db_id for batch in batches for db_id in batch} == {q.db_id for q in gold}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_rounds", 0),
        ("num_samples", 0),
        ("temperature", 0.0),
        ("min_agreement", 0.0),
        ("min_agreement", 1.5),
        ("gold_mix", 0.0),
        ("invention_share", -0.1),
        ("max_questions_per_round", 0),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{name}` is {value}"):
        RecursionSettings(**{name: value})  # type: ignore[arg-type]


def test_a_database_without_a_schema_is_named(tmp_path: Path) -> None:
    data = RecursionData(GOLD, DEV, {}, lambda question: [], "sqlite")
    none: Any = None
    with pytest.raises(InputError, match="`schema_texts` lacks 'pets'"):
        distill_recursively(
            tmp_path, none, data, RecursionSettings(), tmp_path, verifier=none, suite_verifier=none
        )
