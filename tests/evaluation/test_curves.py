"""Training logs as curves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.evaluation.curves import Curve, TrainingLog, get_curves

ROWS = [
    {"step": 1, "loss": 2.0, "losses/cdpo": 0.7, "rewards/chosen": 0.0, "rewards/accuracies": 0.5},
    {"step": 2, "loss": 1.5, "losses/cdpo": 0.6, "rewards/chosen": -0.05, "learning_rate": 1e-5},
    {"step": 2, "eval_loss": 1.4},
    {"step": 4, "loss": 1.0, "losses/cdpo": 0.5, "rewards/chosen": -0.1, "rewards/accuracies": 0.9},
    {"step": 4, "train_runtime": 12.0},
]


def _save(path: Path, rows: list[dict[str, Any]], **facts: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows, **facts}))
    return path


def test_rewards_become_log_ratios_by_beta(tmp_path: Path) -> None:
    _save(tmp_path / "sense" / "metrics.json", ROWS, beta=0.1)
    log = TrainingLog.load(tmp_path / "sense", "SENSE")
    curves = {curve.title: curve for curve in get_curves([log])}
    assert list(curves) == [
        "Loss",
        "Term of the loss: cdpo",
        "Pairs whose chosen answer has the higher reward",
        "log π(chosen) - log π of the reference, nats",
    ]
    assert curves["Loss"].lines == (((1, 2.0), (2, 1.5), (4, 1.0)),)
    assert curves["Loss"].ends == (1.0, 2.0)
    nats = curves["log π(chosen) - log π of the reference, nats"].lines[0]
    assert [value for _, value in nats] == pytest.approx([0.0, -0.5, -1.0])


def test_without_beta_rewards_stay_what_they_are(tmp_path: Path) -> None:
    known = TrainingLog.load(_save(tmp_path / "a.json", ROWS, beta=0.1), "a")
    unknown = TrainingLog.load(_save(tmp_path / "b.json", ROWS), "b")
    titles = [curve.title for curve in get_curves([known, unknown])]
    assert titles[-1].startswith("Reward of the chosen answer")
    assert get_curves([known, unknown])[-1].lines[0][-1] == (4, -0.1)


def test_a_training_without_a_metric_has_an_empty_line(tmp_path: Path) -> None:
    sense = TrainingLog("sense", tuple(ROWS), 0.1)
    sft = TrainingLog("sft", ({"step": 1, "loss": 1.0}, {"step": 3, "loss": 0.5}))
    loss, term, *_ = get_curves([sft, sense])
    assert [len(line) for line in loss.lines] == [2, 3]
    assert [len(line) for line in term.lines] == [0, 3]
    # One point is no curve.
    assert get_curves([TrainingLog("short", ({"step": 1, "loss": 1.0},))]) == []
    assert get_curves([]) == []


def test_checkpoints_of_transformers_are_read_too(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoint-4" / "trainer_state.json", ROWS, global_step=4)
    assert TrainingLog.load(tmp_path / "checkpoint-4", "t").get_points("loss")[-1] == (4, 1.0)
    assert TrainingLog.find(tmp_path, "no training here") is None
    assert TrainingLog.find("org/model-of-the-hub", "t") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"log_history": 3}',
        '{"log_history": [7]}',
        '{"train_loss": 1}',
        "[" * 9999,
    ],
)
def test_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match="no readable log of a training"):
        TrainingLog.find(tmp_path, "t")


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    text = '{"beta": "much", "log_history": [{"step": 1, "loss": NaN, "losses/<b>": "x", "grad_norm": %s}, {"loss": 1}]}'
    text %= "1" * 400
    (tmp_path / "metrics.json").write_text(text)
    log = TrainingLog.load(tmp_path, "t")
    assert log.history == ({"step": 1},)
    assert log.beta is None


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(-1e6, 1e6)), min_size=1, max_size=700),
)
def test_a_path_stays_in_its_picture_and_keeps_both_ends(line: list[tuple[int, float]]) -> None:
    line.sort()
    path = Curve("t", (tuple(line),)).get_path(line, 300, 100)
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert len(points) == min(len(line), 300)
    assert all(0 <= x <= 300 and 0 <= y <= 100 for x, y in points)
    last = max(step for step, _ in line)
    for point, (step, _) in ((points[0], line[0]), (points[-1], line[-1])):
        assert math.isclose(point[0], 300 * step / max(last, 1), abs_tol=0.06)
