"""Online training as a stage: rewards, what is recorded, pairs, and a run that is interrupted."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
from rich.console import Console
from transformers import TrainerCallback

from sense_trl.cli.main import main
from sense_trl.errors import DatabaseError, InputError
from sense_trl.options import DataArguments
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.steps.arguments import RewardArguments
from sense_trl.steps.prompting import load_styled_task
from sense_trl.steps.rollouts import (
    RolloutRecorder,
    collect_rollouts,
    open_rewards,
    pair_rollouts,
)
from sense_trl.steps.stages import grpo

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SCRIPT = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Zoe', 9);
"""
QUIET = Console(file=io.StringIO())


@pytest.fixture
def data(fresh_db: Any, tmp_path: Path) -> DataArguments:
    questions = [
        {"question": f"Older than {i}?", "gold_sql": f"SELECT name FROM pet WHERE age > {i}"}
        for i in range(4)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return DataArguments(str(fresh_db(SCRIPT, name="pets")), str(path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("model"), "qwen2")


OPTIONS = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 4,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "gradient_checkpointing": False,
}


def _run(data: DataArguments, model: str, folder: Path, **options: Any) -> None:
    from trl import ModelConfig

    from sense_trl.trainers import SenseGRPOConfig

    config = SenseGRPOConfig(str(folder), **{**OPTIONS, **options})
    rewards = RewardArguments(rewards=["schema_items", "execution"], num_workers=0)
    grpo(data, rewards, ModelConfig(model_name_or_path=model), config, QUIET)


def _texts(folder: Path) -> list[tuple[str, int, str, str]]:
    candidates = CandidateFile(folder / "rollouts.jsonl")
    return [(c.question_id, c.sample, c.text, c.model) for c in candidates]


def test_a_run_finishes_once_and_one_that_was_stopped_ends_the_same(
    data: DataArguments, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    _run(data, model, whole)
    written = _texts(whole)
    assert len(written) == 3 * 4
    assert {name for *_, name in written} == {f"qwen2, step {step}" for step in range(3)}
    assert (whole / "pairs" / "pairs.json").is_file()
    assert (whole / "model.safetensors").is_file()
    assert not (whole / "rollouts").exists()
    stamp = (whole / "model.safetensors").stat().st_mtime_ns
    _run(data, model, whole)
    assert (whole / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="num_generations was 2, now 4"):
        _run(data, model, whole, num_generations=4)
    with pytest.raises(InputError, match="vespo_k_pos was"):
        _run(data, model, whole, vespo_k_pos=3.0)

    from sense_trl.steps import training

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # After the checkpoint of step 2, while step 3 is done.
            if state.global_step == 3:
                raise KeyboardInterrupt

    original = training.train_model
    monkeypatch.setattr(
        training,
        "train_model",
        lambda *args, callbacks, **options: original(
            *args, callbacks=[*callbacks, Stop()], **options
        ),
    )
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        _run(data, model, part)
    monkeypatch.undo()
    _run(data, model, part)
    assert _texts(part) == written
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_database_that_vanishes_stops_the_run_which_goes_on_once_it_is_back(
    data: DataArguments, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    _run(data, model, whole)
    database = Path(data.database)
    original = RolloutRecorder.__call__

    def vanish(self: Any, *args: Any, trainer_state: Any, **columns: Any) -> Any:
        if trainer_state.global_step == 2:
            database.rename(tmp_path / "elsewhere")
        return original(self, *args, trainer_state=trainer_state, **columns)

    monkeypatch.setattr(RolloutRecorder, "__call__", vanish)
    part = tmp_path / "part"
    with pytest.raises(DatabaseError, match="the file does not exist"):
        _run(data, model, part)
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(database)
    _run(data, model, part)
    assert _texts(part) == _texts(whole)
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_gold_that_does_not_run_leaves_open_what_is_right(data: DataArguments) -> None:
    completions = [[{"role": "assistant", "content": "SELECT name FROM pet"}]] * 2
    columns = {"db_id": ["pets"] * 2, "gold_sql": ["SELECT nme FROM pet", "no SQL"]}
    options = RewardArguments(rewards=["execution", "overlap", "schema_items"], num_workers=0)
    with open_rewards(data.database, options) as rewards:
        for reward in rewards:
            assert reward([], completions, **columns) == [None, None], reward.__name__


def _ask(recorder: RolloutRecorder, step: int, answers: list[tuple[str, str]]) -> Any:
    return recorder(
        ["?"] * len(answers),
        [[{"role": "assistant", "content": text}] for _, text in answers],
        completion_ids=[[5] * len(text.split()) for _, text in answers],
        question_id=[question for question, _ in answers],
        trainer_state=SimpleNamespace(global_step=step),
        db_id=["pets"] * len(answers),
        gold_sql=["SELECT name FROM pet WHERE age > 0"] * len(answers),
    )


def test_what_is_written_becomes_pairs_with_its_step(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    task = load_styled_task(data, model)
    names = [question.question_id for question in task.questions]
    options = RewardArguments(rewards=["execution", "executes"], reward_error=-1.0, num_workers=0)
    settings = {"temperature": 1.0, "top_p": 1.0, "seed": 3}
    with open_rewards(data.database, options) as (execution, executes):
        assert executes.__name__ == "sql_executes"
        limits = {"max_tokens": 7, "end_ids": [2]}
        recorder = RolloutRecorder(execution, tmp_path, model="m", sampling=settings, **limits)
        right, wrong = "SELECT name FROM pet", "SELECT age FROM pet WHERE age > 0"
        assert _ask(recorder, 0, [(names[0], right), (names[0], wrong)]) == [1.0, 0.0]
        # Another generation of the same step, and a step that is done again after an interruption.
        assert _ask(recorder, 0, [(names[0], "SELECT nme FROM pet")]) == [-1.0]
        _ask(recorder, 1, [(names[0], "lost")])
        again = RolloutRecorder(execution, tmp_path, model="m", sampling=settings, **limits)
        _ask(again, 1, [(names[0], right), (names[1], wrong)])
    found = collect_rollouts(tmp_path)
    first = [c for c in found if c.question_id == names[0]]
    assert sorted(c.sql for c in first) == sorted([right, wrong, "SELECT nme FROM pet", right])
    assert [c.sample for c in first] == [0, 1, 2, 3]
    assert first[-1].model == "m, step 1"
    assert [c.finished for c in first if c.sql == wrong] == [False]
    assert collect_rollouts(tmp_path).path == tmp_path / "rollouts.jsonl"
    pair_rollouts(task, found, tmp_path / "pairs", options, QUIET)
    import pyarrow.parquet

    (row,) = pyarrow.parquet.read_table(tmp_path / "pairs" / "pairs.parquet").to_pylist()
    assert row["chosen_sql"] == right
    assert row["chosen_model"] == "m, step 0"
    assert row["rejected_sql"] in (wrong, "SELECT nme FROM pet")


def test_what_execution_leaves_open_gets_no_partial_reward(data: DataArguments) -> None:
    options = RewardArguments(rewards=["executes", "schema_items", "execution"], num_workers=0)
    right, broken = "SELECT name FROM pet WHERE age > 0", "SELECT name FROM pet, no_such"
    # Gold with a tie at its limit has more than one answer.
    tied = "SELECT name FROM pet ORDER BY age > 0 LIMIT 1"
    answers = [right, broken, "SELECT name FROM pet ORDER BY age DESC LIMIT 1"]
    gold = [right, right, tied]
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    columns = {"db_id": ["pets"] * 3, "gold_sql": gold}
    logged: list[float] = []
    with open_rewards(data.database, options) as rewards:
        scores = [
            reward([], completions, log_metric=lambda _, share: logged.append(share), **columns)
            for reward in rewards
        ]
    assert rewards[2].__name__ == "sql_execution_reward"
    assert scores[2] == [1.0, 0.0, None]
    assert scores[0] == [1.0, 0.0, None]
    assert scores[1][0] == 1.0 and scores[1][1] is not None and scores[1][2] is None
    # Executed once for the three of them.
    assert logged == [1 / 3]


@pytest.mark.parametrize("rewards", [[], ["rows"]])
def test_unknown_rewards_are_named(rewards: list[str]) -> None:
    with pytest.raises(InputError, match="`rewards` has"):
        RewardArguments(rewards=rewards)


def test_a_dry_run_and_an_estimate_say_what_it_would_take(
    data: DataArguments, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    options = {**OPTIONS, "database": data.database, "questions": data.questions, "beta": 0.1}
    options |= {"model_name_or_path": model, "output_dir": str(tmp_path / "out")}
    file = tmp_path / "grpo.yaml"
    file.write_text(yaml.safe_dump(options))
    assert main(["grpo", "--config", str(file), "--dry_run", "true"]) == 0
    printed = capsys.readouterr().out
    for part in ("prompts: 4, 2 at a time", "optimizer steps in one process: 3, on 12", "GiB"):
        assert part in printed
    assert not (tmp_path / "out").exists()
    assert main(["estimate", "--config", str(file), "--prompt-tokens", "100"]) == 0
    assert "reference" in capsys.readouterr().out
