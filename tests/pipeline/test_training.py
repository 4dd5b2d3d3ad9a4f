"""What the training stages add to the trainers: resuming."""

import json
from pathlib import Path

import pytest

from sense_trl.pipeline.training import get_unattended_options, last_complete_checkpoint


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
