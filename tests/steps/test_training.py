"""What the training stages add to the trainers: resuming, and a look at what was merged."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from sense_trl.checkpoints.starting_model import load_starting_model
from sense_trl.steps.training import (
    get_unattended_options,
    last_complete_checkpoint,
    train_model,
)
from sense_trl.trainers import SenseDPOConfig, SenseSFTConfig


def _checkpoint(folder: Path, step: int, state: str | None) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"x")
    if state is not None:
        (path / "trainer_state.json").write_text(state)


def test_a_half_written_checkpoint_is_deleted_and_the_one_before_is_used(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 5, json.dumps({"global_step": 5}))
    _checkpoint(tmp_path, 10, json.dumps({"global_step": 10}))
    _checkpoint(tmp_path, 15, '{"global_st')
    _checkpoint(tmp_path, 20, None)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["checkpoint-10", "checkpoint-5", "checkpoint-best"]
    assert last_complete_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 9, 10, 33, 100, 10_000])
def test_an_unattended_training_is_saved_at_most_three_times(
    num_steps: int, tmp_path: Path
) -> None:
    options = get_unattended_options(
        tmp_path, num_rows=4 * num_steps, num_epochs=2, batch_size=8, group_by_columns=[], seed=0
    )
    assert options["max_steps"] == num_steps
    # `transformers` saves the last step as well.
    saved = {*range(options["save_steps"], num_steps + 1, options["save_steps"]), num_steps}
    gaps = [b - a for a, b in zip([0, *sorted(saved)], sorted(saved), strict=False)]
    assert len(saved) <= 3
    assert max(gaps) <= num_steps // 3 + 1


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "dtype", "learning_rate", "is_rounded"),
    [
        ("dpo", "bfloat16", 5e-6, True),
        ("sft", "bfloat16", 2e-2, False),
        ("dpo", "float32", 5e-6, False),
    ],
)
def test_a_merged_adapter_that_rounding_changes_is_warned_of(
    kind: str,
    dtype: str,
    learning_rate: float,
    is_rounded: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tiny_models.save_tiny_model(tmp_path, "llama")
    arguments = ModelConfig(
        model_name_or_path=path, dtype=dtype, use_peft=True, lora_target_modules=["all-linear"]
    )
    start = load_starting_model(arguments, use_cpu=True)
    options = {**tiny_models.OPTIONS, "learning_rate": learning_rate, "max_steps": 4}
    output = str(tmp_path / "out")
    if kind == "dpo":
        config = SenseDPOConfig(output_dir=output, **options)
        metrics = train_model(start, Dataset.from_list(tiny_models.PAIRS), config)
    else:
        config = SenseSFTConfig(output_dir=output, **options)
        metrics = train_model(start, Dataset.from_list(tiny_models.QUESTIONS), config)
    share = metrics["merge_distance"] / metrics["adapter_distance"]
    assert (share > 0.1) == is_rounded == ("rounding them changes its outputs" in caplog.text)
    if dtype == "float32":
        assert share < 1e-3
    # The distance is that of what lies on the disk.
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.no_grad():
        before = base.eval()(ids).logits.float().softmax(-1)
        adapted = PeftModel.from_pretrained(base, f"{output}/adapter").eval()
        expected = adapted(ids).logits.float().softmax(-1)
        merged = AutoModelForCausalLM.from_pretrained(output, dtype=dtype).eval()
        found = merged(ids).logits.float().softmax(-1)
    assert (found - expected).abs().sum() < (0.01 + 3 * share) * (before - expected).abs().sum()
