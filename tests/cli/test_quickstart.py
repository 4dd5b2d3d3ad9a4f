"""The main job on a tiny model: from a database to a report, interrupted and continued."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console

from sense_trl.cli.main import main
from sense_trl.errors import InputError
from sense_trl.evaluation.records import EvaluationRecord, EvaluationReport
from sense_trl.jobs import quickstart as quickstart_module
from sense_trl.jobs.quickstart import run_quickstart
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.steps import work
from sense_trl.steps.sampling import sample_candidates
from sense_trl.verification.verifier import Verdict

SCRIPT = """
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, owner_id INTEGER REFERENCES owner (id));
INSERT INTO owner VALUES (1, 'Ann'), (2, 'Bob');
INSERT INTO pet VALUES (1, 'Rex', 3, 1), (2, 'Tom', 5, 1), (3, 'Zoe', 9, 2);
"""


@pytest.fixture
def inputs(fresh_db: Any, tmp_path: Path) -> dict[str, Any]:
    questions = [
        {"question": f"Who is older than {i}?", "gold_sql": f"SELECT name FROM pet WHERE age > {i}"}
        for i in range(8)
    ] + [
        {"question": f"How many are {i}?", "gold_sql": f"SELECT COUNT(*) FROM pet WHERE age = {i}"}
        for i in (3, 5, 9)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    model = Path(tiny_models.save_tiny_model(tmp_path / "model", "llama"))
    # An untrained model hardly ever ends an answer; with many end tokens it does.
    generation = json.loads((model / "generation_config.json").read_text())
    generation["eos_token_id"] = [2, *range(100, 200)]
    (model / "generation_config.json").write_text(json.dumps(generation))
    return {
        "database": str(fresh_db(SCRIPT, name="pets")),
        "questions": str(path),
        "model": str(model),
        "output_dir": str(tmp_path / "run"),
        "max_new_tokens": 6,
        "batch_size": 4,
        "num_generations": 4,
        "sft_batch_size": 2,
        "sft_epochs": 1,
        "dpo_batch_size": 2,
        "lora_r": 2,
    }


def _run(inputs: dict[str, Any], **changes: Any) -> Path:
    return run_quickstart(QuickstartConfig(**{**inputs, **changes}), Console(quiet=True))


class _Stop(Exception):
    """Stands for a crash."""


def _crash_after(count: int) -> Any:
    """A progress callback for training that crashes after `count` optimizer steps."""
    from transformers import TrainerCallback

    class Crash(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == count:
                raise _Stop

    return lambda bar: Crash()


def _crashing_sampling(*args: Any, on_progress: Any, **kwargs: Any) -> Any:
    """Samples two chunks, then crashes."""
    seen: list[int] = []

    def crash(done: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise _Stop

    return sample_candidates(*args, on_progress=crash, **kwargs)


def test_from_database_to_report_and_a_crash_in_each_stage_changes_nothing(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _run(inputs)
    whole = Path(inputs["output_dir"])
    assert report == whole / "report.html"
    page = report.read_text()
    assert all(name in page for name in ("baseline", "after SFT", "after SENSE DPO"))
    data = json.loads((whole / "report.json").read_text())
    assert data["pairs"]["num_pairs"] > 0
    assert {"sft", "sample", "pairs", "dpo"} <= set(data["costs"])
    assert not list(whole.rglob("checkpoint-*"))
    for model, method in (("sft", "SENSE SFT"), ("dpo", "arXiv 2408.03256")):
        card = (whole / model / "README.md").read_text()
        assert "A text-to-SQL model" in card and method in card and "None" not in card

    crashed = {**inputs, "output_dir": str(tmp_path / "crashed")}
    # In the middle of both trainings, and of sampling.
    for key, steps in (("sft", 3), ("sample", 0), ("dpo", 1)):
        with monkeypatch.context() as patch:
            if key == "sample":
                patch.setattr(work, "sample_candidates", _crashing_sampling)
            else:
                patch.setattr(work, "progress_callback", _crash_after(steps))
            with pytest.raises(_Stop):
                _run(crashed)
    _run(crashed)
    for name in ("candidates.jsonl", "pairs.parquet", "evaluation-dpo.json", "pairs.json"):
        assert (tmp_path / "crashed" / name).read_bytes() == (whole / name).read_bytes(), name
    for model in ("sft", "dpo"):
        file = f"{model}/model.safetensors"
        assert (tmp_path / "crashed" / file).read_bytes() == (whole / file).read_bytes(), file

    # A finished run is not done again: the same command only writes the report anew.
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")}
    _run(inputs)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("correct", "own", "expected"),
    [
        ((0, 1, 2), {}, "sense-trl ask --model_name_or_path 'my runs/dpo'"),
        (
            (0, 1, 1),
            {"schema_style": "ddl", "max_new_tokens": 200},
            "--model_name_or_path 'my runs/sft' --max_new_tokens 200",
        ),
        ((0, 1), {"database": "d.db", "questions": "q"}, "/sft' --database d.db --db_id a"),
        ((1, 1, 0), {}, None),
    ],
)
def test_the_best_trained_model_is_offered(
    correct: tuple[int, ...], own: dict[str, Any], expected: str | None
) -> None:
    quickstart = quickstart_module._Quickstart(
        QuickstartConfig(output_dir="my runs", **own), Console(quiet=True)
    )
    verdicts = [[Verdict.CORRECT] * n + [Verdict.WRONG] * (2 - n) for n in correct]
    runs = [
        EvaluationReport(
            "run",
            tuple(
                EvaluationRecord(
                    str(i), db_id, None, "?", "SELECT 1", "SELECT 2", verdict, "", None
                )
                for i, (db_id, verdict) in enumerate(zip("ab", found, strict=True))
            ),
        )
        for found in verdicts
    ]
    command = quickstart._get_ask_command(runs)
    assert command is None if expected is None else command.endswith(expected)


def test_a_small_set_is_seen_several_times() -> None:
    config = QuickstartConfig()
    assert [config.get_sft_epochs(n) for n in (1, 111, 128, 255, 256, 3000)] == [256, 3, 2, 2, 1, 1]
    assert QuickstartConfig(sft_epochs=0.5).get_sft_epochs(111) == 0.5
    with pytest.raises(InputError, match="`sft_epochs` is 0"):
        QuickstartConfig(sft_epochs=0)


def test_a_weak_result_says_what_to_try(inputs: dict[str, Any]) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    config = QuickstartConfig(**{**inputs, "sft_epochs": 1, "max_pairs": 1})
    run_quickstart(config, console)
    text = console.export_text()
    assert "--sft_epochs 4, now 1" in text
    assert "sense-trl ask" not in text
    # More epochs of what the model knows by heart help nobody.
    metrics = Path(config.output_dir) / "sft" / "metrics.json"
    metrics.write_text(json.dumps({"log_history": [{"step": 9, "loss": 0.0092}]}))
    advice = quickstart_module._Quickstart(config, console)._get_advice(11)
    assert "by heart (loss 0.0092)" in advice and "--sft_epochs" not in advice


def test_without_a_pair_there_is_a_report_and_no_preference_training(
    inputs: dict[str, Any],
) -> None:
    report = _run(inputs, temperature=1e-6, max_new_tokens=1)
    assert "after SFT" in report.read_text()
    data = json.loads(report.with_suffix(".json").read_text())
    assert data["pairs"]["num_pairs"] == 0
    assert len(data["runs"]) == 2


def _main(inputs: dict[str, Any], capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    arguments = []
    for name, value in {**inputs, **changes}.items():
        if name.startswith("--"):
            arguments.append(name)
        elif value is not None:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    assert main(["quickstart", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_bad_input_is_one_paragraph_and_exit_code_2(
    inputs: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("no database " * 100)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "q", "gold_sql": "SELECT 1"}\n{"question": \n')
    field = tmp_path / "field.jsonl"
    field.write_text('{"question": "q", "gold_sql": "SELECT 1"}\n{"question": "q"}\n')
    gold = tmp_path / "gold.jsonl"
    gold.write_text(
        '{"question": "q", "gold_sql": "SELECT 1"}\n{"question": "q", "gold_sql": "SELECT nme FROM pet"}\n'
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"question": "q", "gold_sql": "SELECT 1", "split": "test"}\n')
    folder = Path(tiny_models.save_tiny_model(tmp_path / "bare", "llama"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"database": tmp_path / "none.sqlite"}, ["none.sqlite"]),
        ({"database": text}, ["text.sqlite", "not an SQLite database"]),
        ({"database": None}, ["`questions` is given without `database`"]),
        ({"questions": broken}, ["broken.jsonl, line 2", "invalid JSON"]),
        ({"questions": field}, ["field.jsonl, line 2", "`gold_sql`", "is missing"]),
        ({"questions": gold}, ["gold-00002", "no such column: nme"]),
        ({"questions": empty}, ["training set is empty"]),
        ({"model": folder}, ["no usable tokenizer", "tokenizer.json"]),
        ({"model": tmp_path / "nowhere"}, ["not a model folder"]),
        ({"num_generations": 0}, ["`num_generations` is 0"]),
        ({"temperature": 0}, ["`temperature` is 0"]),
        ({"seed": -1}, ["`seed` is -1"]),
        ({"label_smoothing": 0.7}, ["`label_smoothing` is 0.7"]),
    ]
    # Saving the model showed a progress bar.
    capsys.readouterr()
    for changes, words in cases:
        message = _main(inputs, capsys, **changes)
        assert message.startswith("error:"), message
        assert all(word in message for word in words), message
        assert "Traceback" not in message
    assert not Path(inputs["output_dir"]).exists()


def test_an_output_folder_of_something_else_is_not_touched(
    inputs: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = Path(inputs["output_dir"])
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    overwrite = {"--overwrite": None}
    assert "holds no run of sense_trl (found 'thesis.txt')" in _main(inputs, capsys)
    # Another program's settings.json does not make the folder ours.
    (output / "settings.json").write_text('{"editor.fontSize": 12}')
    assert "holds no run of sense_trl" in _main(inputs, capsys)
    assert "Nothing was deleted" in _main(inputs, capsys, **overwrite)
    assert sorted(p.name for p in output.iterdir()) == ["settings.json", "thesis.txt"]
    blocked = tmp_path / "file"
    blocked.write_text("x")
    assert "cannot be used as a folder" in _main(inputs, capsys, output_dir=blocked / "run")


def test_a_run_with_other_settings_or_other_content_is_refused(
    inputs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**inputs, "temperature": 1e-6, "max_new_tokens": 1}
    Path(inputs["output_dir"]).mkdir()  # an empty folder is fine
    report = _run(small)
    first = json.loads(report.with_suffix(".json").read_text())
    assert first["costs"]
    again = json.loads(_run(small).with_suffix(".json").read_text())
    assert again["costs"] == first["costs"]
    assert "seed was 0, now 3" in _main(small, capsys, seed=3)
    questions = Path(inputs["questions"])
    before = questions.read_text()
    questions.write_text(before.replace("older than 7", "elder than 7"))
    assert "questions was" in _main(small, capsys)
    questions.write_text(before)
    inside = {**small, "model": str(report.parent / "sft"), "--overwrite": None}
    assert "would delete" in _main(inside, capsys)
    assert (report.parent / "sft" / "model.safetensors").is_file()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["quickstart", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name in text for name in QuickstartConfig.__annotations__)


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_pairs(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    whole = _run(inputs).parent
    command = [sys.executable, "-m", "sense_trl", "quickstart"]
    for name, value in {**inputs, "output_dir": tmp_path / "killed"}.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    watched = iter(["sft/checkpoint-*", "candidates.jsonl", "dpo/checkpoint-*"])
    for pattern in watched:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "killed").glob(pattern)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in ("candidates.jsonl", "pairs.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
