"""`sense-trl estimate`: a table or JSON, a verdict as exit code, and unusable files named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from sense_trl.cli.estimate import EXIT_DOES_NOT_FIT
from sense_trl.cli.main import EXIT_INPUT, EXIT_OK, main

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A stage for a GPU, which this machine need not have."""
    model = tiny_models.save_tiny_model(tmp_path, "llama")
    file = tmp_path / "dpo.yaml"
    file.write_text(
        f"model_name_or_path: {model}\n"
        "pairs: pairs.parquet\noutput_dir: out\ndtype: bfloat16\nbf16: true\nload_in_4bit: true\n"
        "use_bnb_nested_quant: true\nuse_peft: true\nlora_target_modules: [all-linear]\n"
        "max_length: 300\noptim: paged_adamw_8bit\ngradient_accumulation_steps: 2\n"
    )
    return file


def test_a_training_that_fits(config: Path, capsys) -> None:
    assert main(["estimate", "--config", str(config), "--card", "24GB"]) == EXIT_OK
    text = capsys.readouterr().out
    assert "micro-batch of 8 examples of 172 + 128 tokens" in text
    assert "4-bit weights" in text and "CUDA context" in text
    assert "fits in the 24.0 GiB of GeForce RTX 4090 (estimated)" in text
    assert "s per optimizer step (estimated, at 35%" in text


def test_one_that_does_not_fit_names_what_to_change(config: Path, capsys) -> None:
    # The CUDA context alone takes more than half.
    arguments = ["--config", str(config), "--memory-gb", "0.61", "--json"]
    arguments += ["--set", "per_device_train_batch_size=16", "--completion-tokens", "100"]
    assert main(["estimate", *arguments]) == EXIT_DOES_NOT_FIT
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    assert found["total_bytes"] == sum(part["num_bytes"] for part in found["parts"])
    assert found["tokens"] == 16 * (200 + 2 * 100)
    (change,) = (c for c in found["changes"] if c["options"].startswith("per_device"))
    # The largest part of the batch that fits.
    assert change["options"] == "per_device_train_batch_size: 8, gradient_accumulation_steps: 4"
    assert change["total_bytes"] < 0.61 * 2**30 < found["total_bytes"]


def test_an_adapter_folder_is_estimated_with_its_base(config: Path, capsys) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.parent / "llama")
    adapter = config.parent / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(adapter)
    options = ["--set", f"model_name_or_path={adapter}", "use_peft=false", "load_in_4bit=true"]
    assert main(["estimate", "--config", str(config), "--json", *options]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part["num_bytes"] for part in found["parts"]}
    # TRL keeps the adapter it starts from as the reference.
    assert parts["reference"] == parts["adapter"] == 4 * found["num_trained"]
    assert found["fits"] is None


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("", ["--card", "9000"], "`card` is '9000'"),
        ("", ["--memory-gb", "-1"], "`memory_gb` is -1; expected GiB above 0"),
        ("", ["--memory-gb", "nan"], "`memory_gb` is nan"),
        ("", ["--set", "max_length=-1"], "`max_length` is -1; expected at least 2"),
        ("", ["--set", "max_length"], "expected NAME=VALUE"),
        ("", ["--set", "load_in_4bit=true", "dtype=float32"], "`dtype` is 'float32'"),
        ("max_lenght: 3\n", [], "options that the stage 'dpo' does not know: ['--max_lenght']"),
        ("model_name_or_path: ./none\n", [], "config of the model './none' cannot be read"),
        ("a: [", [], "cannot be read"),
    ],
)
def test_unusable_input_is_named(config: Path, capsys, text: str, flags: list[str], words) -> None:
    config.write_text(config.read_text() + text)
    assert main(["estimate", "--config", str(config), *flags]) == EXIT_INPUT
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_no_stage_is_named(config: Path, capsys) -> None:
    other = config.with_name("quickstart.yaml")
    assert main(["estimate", "--config", str(other)]) == EXIT_INPUT
    assert "say with --stage which it is: sft, dpo, kd" in capsys.readouterr().err
    assert main(["estimate", "--config", str(other), "--stage", "dpo"]) == EXIT_INPUT
    assert "neither a file nor a stage of a recipe" in capsys.readouterr().err
    other.write_bytes(b"\xff\xfe")
    assert main(["estimate", "--config", str(other), "--stage", "dpo"]) == EXIT_INPUT
    assert "cannot be read" in capsys.readouterr().err
    other.write_text("- a list")
    assert main(["estimate", "--config", str(other), "--stage", "dpo"]) == EXIT_INPUT
    assert "holds no options" in capsys.readouterr().err
