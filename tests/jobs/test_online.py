"""Online SENSE: rounds follow each other, and a run that is stopped anywhere goes on."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console

from sense_trl.cli.main import EXIT_INPUT, main
from sense_trl.generation.generator import Completion
from sense_trl.jobs import online
from sense_trl.jobs.online import run_online
from sense_trl.jobs.online_config import OnlineConfig
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.steps import work

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def config(fresh_db: Any, model: str, tmp_path: Path) -> OnlineConfig:
    script = "CREATE TABLE pet (name TEXT, age INTEGER); INSERT INTO pet VALUES ('Rex', 3);"
    questions = [
        {"question": f"Older than {i}?", "gold_sql": f"SELECT name FROM pet WHERE age > {i}"}
        for i in range(3)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return OnlineConfig(
        str(fresh_db(script, name="pets")),
        str(tmp_path / "q.jsonl"),
        model=model,
        output_dir=str(tmp_path / "online"),
        num_rounds=2,
        questions_per_round=2,
        num_samples=2,
        max_new_tokens=4,
        num_workers=0,
        learning_rate=1e-2,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A generator that is right once and wrong once; the models that were asked."""
    models: list[str] = []

    class Writer:
        def __init__(self, model: Any, *, name: str, **_: Any) -> None:
            self.name = name
            models.append(str(model))

        def generate(self, prompts: Any, sampling: Any, **_: Any) -> list[list[Completion]]:
            texts = ("SELECT name FROM pet", "SELECT age FROM pet")
            return [[Completion(text, 4, True) for text in texts] for _ in prompts]

    monkeypatch.setattr(online, "TransformersGenerator", Writer)
    return models


def test_each_round_starts_from_the_model_and_the_reference_of_the_one_before(
    config: OnlineConfig, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(config.output_dir)
    starts = []
    train = online._train
    monkeypatch.setattr(
        online, "_train", lambda model, *rest: starts.append(str(model)) or train(model, *rest)
    )
    final = run_online(config, QUIET)
    first = str(output / "round-1" / "model")
    assert str(final) == str(output / "round-2" / "model")
    assert asked == starts == [config.model, first]
    rounds = json.loads((output / "rounds.json").read_text())
    assert [entry["num_pairs"] for entry in rounds] == [2, 2]
    assert rounds[0]["verdicts"] == {"correct": 2, "wrong": 2}
    weights = [
        (Path(path) / "model.safetensors").read_bytes() for path in (config.model, first, final)
    ]
    assert len({*weights}) == 3
    assert not list(output.rglob("checkpoint-*"))
    # The log-ratio to a reference that was the policy begins at 0.
    log = json.loads((output / "round-2" / "model" / "metrics.json").read_text())["log_history"]
    assert log[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("step", ["pair", "train"])
def test_a_run_that_is_stopped_within_a_round_ends_the_same(
    config: OnlineConfig, asked: list[str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = getattr(work, step)

    def stop(*args: Any, **options: Any) -> Any:
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(work, step, stop)
    with pytest.raises(KeyboardInterrupt):
        run_online(config, QUIET)
    monkeypatch.setattr(work, step, original)
    num_asked = len(asked)
    final = run_online(config, QUIET)
    # Nothing that was sampled is sampled again.
    assert len(asked) == num_asked == 2
    assert final.name == "model"
    assert len(json.loads((Path(config.output_dir) / "rounds.json").read_text())) == 2


def test_without_a_right_answer_the_model_stays_and_is_sampled_anew(
    config: OnlineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config.questions_per_round = None
    assert str(run_online(config, QUIET)) == config.model
    assert "no question with a right and a wrong answer" in caplog.text
    assert "left out {" in caplog.text
    written = [
        {(c.question_id, c.sample, c.text) for c in CandidateFile(path)}
        for path in sorted(Path(config.output_dir).glob("round-*/candidates.jsonl"))
    ]
    assert len(written[0]) == len(written[1]) == 3 * 2
    assert written[0] != written[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-samples", "1"], "`num_samples` is 1"),
        (["--policy", "best"], "`policy` is 'best'"),
        (["--temperature", "0"], "`temperature` is 0"),
        (["--loss-type", "grpo"], "`loss_type` has 'grpo'"),
        (["--label-smoothing", "2"], "`label_smoothing`"),
    ],
)
def test_unusable_input_is_one_paragraph_and_exit_code_2(
    flags: list[str], words: str, config: OnlineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--database", config.database, "--questions", config.questions]
    given += ["--model", config.model, "--output-dir", config.output_dir]
    assert main(["online", *given, *flags]) == EXIT_INPUT
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path(config.output_dir).exists()
