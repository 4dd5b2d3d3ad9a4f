"""`sense-trl sft|pairs|dpo|evaluate --config`: the stages from the command line, on a tiny model."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import yaml
from datasets import Dataset

from sense_trl.cli import stage as stage_module
from sense_trl.cli import stages
from sense_trl.cli.main import main
from sense_trl.cli.stage import resolve_accelerate_config
from sense_trl.database.location import PASSWORDS_VARIABLE
from sense_trl.evaluation import EvaluationReport
from sense_trl.memory.estimate import build_batch
from sense_trl.memory.training_setup import TrainingSetup

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:bitsandbytes"),
]

SIDES = ("chosen", "rejected")


def test_a_chain_of_stages_runs_from_its_files(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    monkeypatch.chdir(recipe)
    assert main(["sft", "--config", "sft.yaml", "--lora_r", "3"]) == 0
    adapter = json.loads((recipe / "sft" / "adapter_config.json").read_text())
    assert adapter["r"] == 3
    assert main(["pairs", "--config", "pairs.yaml"]) == 0
    assert capsys.readouterr().out.strip() == "pairs/pairs.parquet"
    assert main(["dpo", "--config", "dpo.yaml"]) == 0
    assert main(["kd", "--config", "kd.yaml"]) == 0
    assert json.loads((recipe / "kd" / "adapter_config.json").read_text())["r"] == 3
    logged = json.loads((recipe / "kd" / "metrics.json").read_text())["log_history"]
    assert logged
    assert main(["evaluate", "--config", "evaluate.yaml"]) == 0
    report = json.loads((recipe / "evaluate" / "evaluation.json").read_text())
    assert len(report["records"]) == 6


def test_a_dry_run_says_what_would_run_and_writes_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    before = sorted(recipe.rglob("*"))
    flags = ["--max_length", "105", "--lr_scheduler_type", "cosine", "--dry-run"]
    assert main(["sft", "--config", "sft.yaml", *flags]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed[: printed.index("examples:")])
    assert settings["learning_rate"] == 0.01
    assert settings["load_in_4bit"] is True
    assert settings["max_length"] == 105
    assert settings["lr_scheduler_type"] == "cosine"
    assert "save_steps" not in settings
    tokenizer = tiny_models.build_tiny_tokenizer()
    from sense_trl.options import DataArguments
    from sense_trl.steps.stages import load_rows

    rows = load_rows(DataArguments(settings["database"], settings["questions"]))
    lengths = [
        len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False))
        for row in rows
    ]
    assert "examples: 6\n" in printed
    assert f"{max(lengths)} at most" in printed
    too_long = sum(length > 105 for length in lengths)
    assert 0 < too_long < 6
    assert f"longer than `max_length` 105: {too_long} " in printed
    assert "optimizer steps in one process: 2" in printed
    assert re.search(r"memory, estimated:\n(.*\n)*adapter .*\n(.*\n)*total .* GiB\n", printed)
    assert sorted(recipe.rglob("*")) == before


def test_a_dry_run_of_distillation_counts_the_teacher(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    flags = ["--model_name_or_path", str(recipe / "model" / "llama"), "--load_in_4bit", "no"]
    printed = []
    for stage in ("kd", "sft"):
        assert main([stage, "--config", f"{stage}.yaml", *flags, "--dry-run"]) == 0
        printed.append(capsys.readouterr().out)
    assert re.search("^teacher", printed[0], re.MULTILINE)
    assert not re.search("^teacher .*[1-9]", printed[1], re.MULTILINE)


def test_a_dry_run_counts_what_a_linker_reads(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe)
    setups: list[TrainingSetup] = []
    estimate = "sense_trl.steps.dry_run.estimate_memory"
    monkeypatch.setattr(estimate, lambda setup, *_, **__: setups.append(setup))
    flags = ["--model_name_or_path", str(recipe / "model" / "llama"), "--load_in_4bit", "no"]
    for weight in ("0", "1"):
        command = ["sft", "--config", "sft.yaml", *flags, "--dry-run", "--link_weight", weight]
        assert main(command) == 0
    assert setups[0].examples is not None and setups[1].examples is not None
    assert not setups[0].examples.text_lengths.any()
    assert setups[1].examples.text_lengths.shape == (6, 1)
    assert build_batch(setups[1]).num_nodes > build_batch(setups[0]).num_nodes


def test_a_dry_run_counts_pairs_of_text(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    Dataset.from_list(tiny_models.PAIRS).to_parquet("text.parquet")
    model = recipe / "model" / "llama"
    flags = ["--pairs", "text.parquet", "--model_name_or_path", str(model), "--load_in_4bit", "no"]
    assert main(["dpo", "--config", "dpo.yaml", *flags, "--dry-run"]) == 0
    tokenizer = tiny_models.build_tiny_tokenizer()
    longest = max(
        len(tokenizer(pair["prompt"] + pair[name] + tokenizer.eos_token)["input_ids"])
        for pair in tiny_models.PAIRS
        for name in ("chosen", "rejected")
    )
    assert f"{longest} at most" in capsys.readouterr().out


def test_preference_pairs_may_have_the_columns_of_a_public_layout(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    rows = [
        {"system": "singer(id)", "question": pair["prompt"], **{k: pair[k] for k in SIDES}}
        for pair in tiny_models.PAIRS
    ]
    (recipe / "orca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Dataset.from_list(rows).to_parquet("orca.parquet")
    model = recipe / "model" / "llama"
    flags = ["--model_name_or_path", str(model), "--load_in_4bit", "no"]
    command = ["dpo", "--config", "dpo.yaml", *flags]
    for dry_run in ([], ["--dry-run"]):
        assert main([*command, "--pairs", "orca.jsonl", *dry_run]) == 2
        assert "lacks the columns ['prompt']" in " ".join(capsys.readouterr().err.split())
    settings = yaml.safe_load((recipe / "dpo.yaml").read_text())
    named = {"columns": {"system": "system", "prompt": "question"}, "pairs": "orca.jsonl"}
    (recipe / "mapped.yaml").write_text(yaml.safe_dump({**settings, **named}))
    printed = []
    for options in (
        ["--config", "mapped.yaml"],
        ["--config", "dpo.yaml", "--pairs", "orca.parquet", "--columns", "orca_dpo"],
        ["--config", "dpo.yaml", "--pairs", "orca.jsonl", "--columns", '{"prompt": "question"}'],
    ):
        assert main(["dpo", *options, *flags, "--dry-run"]) == 0
        printed.append(re.search("tokens per example.*", capsys.readouterr().out)[0])
    assert printed[0] == printed[1] != printed[2]
    assert main(["dpo", "--config", "mapped.yaml", *flags, "--output_dir", "mapped"]) == 0
    assert (recipe / "mapped" / "metrics.json").is_file()


def test_a_dry_run_of_generation_counts_questions(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    model = recipe / "model" / "llama"
    assert (
        main(["pairs", "--config", "pairs.yaml", "--dry-run", "--model_name_or_path", str(model)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "questions: 6 on 1 databases, 0 left out" in printed
    assert "completions: 24, each of at most 6 tokens" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["pairs", "--config", "pairs.yaml"],
        ["evaluate", "--config", "evaluate.yaml"],
        ["grpo", "--config", "sft.yaml", "--num_generations", "2"],
    ],
    ids=lambda options: options[0],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_gold_is_looked_at_within_the_limits_of_the_command(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    dry_run: list[str],
) -> None:
    monkeypatch.chdir(recipe)
    command = [*options, *dry_run, "--query_limit", "max_rows=0"]
    assert main([*command, "--model_name_or_path", str(recipe / "model" / "llama")]) == 2
    assert "more than 0 rows; raise `max_rows`" in " ".join(capsys.readouterr().err.split())


def test_a_script_of_the_checkout_runs_its_stage(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).resolve().parents[2] / "recipes" / "train_sft.py"
    monkeypatch.chdir(recipe)
    for name, code in (("sft.yaml", 0), ("nowhere.yaml", 2)):
        monkeypatch.setattr(sys, "argv", [str(script), "--config", name, "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == code
    assert "examples: 6\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["sft", "--config", "typo.yaml"], "max_qestions"),
        (["sft", "--config=typo.yaml"], "max_qestions"),
        (["sft", "--config"], "`--config` stands last"),
        (["sft", "--config", "steps.yaml"], r"`max_steps` is 1.5 .*; expected a whole number"),
        (["sft", "--config", "rate.yaml"], r"`learning_rate` is \[0.1\] .*; expected a number"),
        (["sft", "--config", "null.yaml"], "`database` is null"),
        (["sft", "--config", "sft.yaml", "--use_cpu", "false"], "bf16|float32"),
        (
            ["sft", "--config", "sft.yaml", "--model_name_or_path", "nothing/here/at/all"],
            "nothing/here",
        ),
        (["dpo", "--config", "dpo.yaml"], "'sft' is not the folder of one"),
        (["dpo", "--config", "dpo.yaml", "--load_in_4bit", "false"], "which is not a file"),
        (
            ["sft", "--config", "sft.yaml", "--accelerate_config", "zero9"],
            "fsdp_qlora, multi_gpu, zero2",
        ),
    ],
)
def test_unusable_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(recipe)
    added = {
        "typo": "max_qestions: 3",
        "steps": "max_steps: 1.5",
        "rate": "learning_rate: [0.1]",
        "null": "database:",
    }
    for name, line in added.items():
        # Of a key that stands twice, YAML takes the last.
        (recipe / f"{name}.yaml").write_text((recipe / "sft.yaml").read_text() + f"{line}\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_files_and_models_have_one_grammar() -> None:
    for files in (["predictions.sql"], ["--config", "e.yaml"]):
        assert stages.find_stage(["evaluate", *files]) == (stages.EVALUATE, files)
    assert stages.find_stage(["pairs", "stats", "runs"]) is None
    for build in ([], ["build"]):
        flags = ["--config=pairs.yaml"]
        assert stages.find_stage(["pairs", *build, *flags]) == (stages.PAIRS, flags)
    assert stages.find_stage(["dpo"]) == (stages.DPO, [])
    assert stages.find_stage([]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "p.sql", *("--model_name_or_path", "m"), "--output_dir", "o"], "files or a"),
        (["evaluate", "p.sql", "--temperature", "1.0"], "`temperature` is given without `model"),
        (["evaluate", "p.sql", "--split", "dev"], "`split` is 'dev', but files are read"),
        (["evaluate"], "`predictions` are missing"),
        (["pairs", "--weak", "p.sql", "--num-generations", "4"], "`num_generations` is given with"),
        (["pairs", "--weak", "p.sql"], "`output_dir` is missing"),
        (
            ["pairs", *("--weak", "p", "--model_name_or_path", "m"), "--output-dir", "o"],
            "or a model",
        ),
    ],
)
def test_a_model_and_files_exclude_each_other(
    arguments: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--database", str(recipe / "pets.sqlite"), "--questions", str(recipe / "q.jsonl")]
    assert main([*arguments, *data]) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_on_the_command_line_and_in_the_file_is_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    (recipe / "part.yaml").write_text("model_name_or_path: model\nquestions: q.jsonl\n")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--config", "part.yaml"])
    assert "required: --database" in capsys.readouterr().err


def test_a_model_is_measured_as_files_are(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    model = ["--model_name_or_path", str(recipe / "model" / "llama")]
    more = ["--soft-f1", "--suite=2", "--run-name", "mine", "--num-workers=0"]
    assert main(["evaluate", "--config", "evaluate.yaml", *model, *more]) == 0
    report = EvaluationReport.load(recipe / "evaluate" / "evaluation.json")
    assert report.name == "mine" and "generated neighbours" in report.notes["suite"]
    assert report.get_score("soft_f1") is not None
    predictions = str(recipe / "evaluate" / "predictions.jsonl")
    files = ["--database", str(recipe / "pets.sqlite"), "--questions", str(recipe / "q.jsonl")]
    assert main(["evaluate", predictions, *files, *more, "--output-dir", "again"]) == 0
    again = EvaluationReport.load(recipe / "again" / "evaluation.json")
    assert again.records == report.records


def test_tracking_is_what_report_to_says(recipe: Path) -> None:
    for value, expected in (("none", []), ("tensorboard", ["tensorboard"])):
        arguments = ["--config", str(recipe / "sft.yaml"), "--report_to", value]
        _, training, *_ = stages.SFT.make_parser().parse_args_and_config(arguments)
        assert training.report_to == expected


def test_no_password_of_a_yaml_file_is_shown(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = recipe / "own.yaml"
    text = (recipe / "sft.yaml").read_text()
    own.write_text(
        re.sub("(?m)^database:.*", "database: postgresql://u:hunter2@127.0.0.1:1/d", text)
    )
    assert main(["sft", "--config", str(own), "--dry_run"]) == 2
    said = capsys.readouterr()
    assert "database: postgresql://u@127.0.0.1:1/d" in said.out
    assert "hunter2" not in said.out + said.err
    own.write_text(re.sub("(?m)^database:.*", "database: host=h password=hunter2", text))
    assert main(["sft", "--config", str(own), "--dry_run"]) == 2
    said = capsys.readouterr()
    assert "may hold a password" in said.err and "hunter2" not in said.out + said.err


def test_accelerate_starts_the_same_stage(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    environments: list[dict[str, str]] = []

    def run(
        command: list[str], check: bool, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        started.append(command)
        environments.append(env)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    own = recipe / "own.yaml"
    own.write_text("num_processes: 1\n")
    arguments = ["--config", str(recipe / "sft.yaml"), "--learning_rate", "0.5"]
    for name in ("zero2", str(own)):
        flags = ["--accelerate_config", name, "--num_processes", "4"]
        assert main(["sft", *arguments, *flags]) == 3
        file = resolve_accelerate_config(name)
        assert started[-1] == [
            sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(file),
            "--num_processes", "4", "-m", "sense_trl", "sft", *arguments, *flags,
            "--accelerate_config", "none",
        ]  # fmt: skip
    # Command lines are seen by all users of a machine.
    database = ["--database", "postgresql://u:hunter2@h/d"]
    assert main(["sft", *arguments, *flags, *database]) == 3
    assert "hunter2" not in str(started[-1]) and "postgresql://u@h/d" in started[-1]
    assert "hunter2" in environments[-1][PASSWORDS_VARIABLE]
    # A process of a launched run, which reads the same file, starts nothing more.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(
        stage_module, "_parse", lambda *_, **__: (stage_module.LaunchArguments("zero2"),)
    )
    ran: list[int] = []
    stage = stage_module.Stage("sft", "x", (), lambda *_: ran.append(1), lambda *_: "")
    assert stage.run([], None) == 0
    assert (len(started), ran) == (3, [1])


@pytest.mark.slow
def test_two_processes_do_what_one_does(recipe: Path) -> None:
    config = recipe / "two.yaml"
    config.write_text(
        "distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\nnum_machines: 1\n"
    )

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "sense_trl", *arguments]
        done = subprocess.run(command, cwd=recipe, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    both = ("--accelerate_config", str(config))
    run("sft", "--config", "sft.yaml", "--load_in_4bit", "false", *both)
    assert (recipe / "sft" / "model.safetensors").is_file()
    run("pairs", "--config", "pairs.yaml", "--output_dir", "one")
    run("pairs", "--config", "pairs.yaml", "--output_dir", "two", *both)
    for file in ("candidates.jsonl", "pairs.parquet"):
        assert (recipe / "two" / file).read_bytes() == (recipe / "one" / file).read_bytes()
