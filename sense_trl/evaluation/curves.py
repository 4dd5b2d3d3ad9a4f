"""`TrainingLog`: what a training logged on its way, as the curves of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sense_trl.errors import InputError

# Where trainings leave their log: our stages, and transformers in each checkpoint.
_FILES: Final = ("metrics.json", "trainer_state.json")
# More points than a plot is wide show nothing more.
_MAX_POINTS: Final = 300

_CHOSEN: Final = "rewards/chosen"
_TITLES: Final = {
    "loss": "Loss",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Pairs whose chosen answer has the higher reward",
    _CHOSEN: "Reward of the chosen answer: beta (log π - log π of the reference)",
    "kid/effective_error_rate": "KID: tokens of the imperfect answers that differ from gold",
    "mean_token_accuracy": "Tokens of the answers that are the likeliest",
}
_TERM: Final = "losses/"


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """Log of one training.

    Attributes:
        name: of the training; a run of the same name is the model that came out of it.
        history: a row per logged step, as transformers keeps it: `step` and metrics by name.
        beta: of preference training; None where it is not known.
    """

    name: str
    history: tuple[Mapping[str, float], ...]
    beta: float | None = None

    @classmethod
    def load(cls, path: str | Path, name: str) -> TrainingLog:
        """Read the log of a training.

        Args:
            path: `metrics.json` of a stage, `trainer_state.json` of a checkpoint, or a folder with
                one of them.
            name: what to call it.

        Raises:
            InputError: there is no such file, or it holds no log.
        """
        path = Path(path)
        found = next((file for file in (path / n for n in _FILES) if file.is_file()), path)
        try:
            data = json.loads(found.read_bytes())
            rows = [row for row in data["log_history"] if _is_number(row.get("step"))]
            beta = data.get("beta")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} holds no readable log of a training ({type(error).__name__}: "
                f"{error}). Expected {' or '.join(_FILES)} with `log_history`."
            ) from error
        history = tuple({k: v for k, v in row.items() if _is_number(v)} for row in rows)
        return cls(name, history, beta if _is_number(beta) and beta > 0 else None)

    @classmethod
    def find(cls, folder: str | Path, name: str) -> TrainingLog | None:
        """The log beside a trained model; None where there is none, as beside a model of the hub.

        Raises:
            InputError: there is one that cannot be read.
        """
        is_there = any((Path(folder) / file).is_file() for file in _FILES)
        return cls.load(folder, name) if is_there else None

    def get_points(self, metric: str) -> list[tuple[float, float]]:
        """Step and value wherever the metric was logged, in the order of the steps."""
        return sorted((row["step"], row[metric]) for row in self.history if metric in row)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of several trainings.

    Attributes:
        title: what it is.
        lines: by training, step and value; empty where it was not logged.
    """

    title: str
    lines: tuple[tuple[tuple[float, float], ...], ...]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        values = [value for line in self.lines for _, value in line]
        return min(values), max(values)

    @property
    def last_step(self) -> float:
        """Last step of the longest training."""
        return max(step for line in self.lines for step, _ in line)

    def get_path(self, line: Sequence[tuple[float, float]], width: float, height: float) -> str:
        """A line as the data of an SVG path, with the greatest value on top.

        Example:
            >>> line = ((1, 3.0), (2, 2.0), (4, 1.0))
            >>> Curve("Loss", (line,)).get_path(line, 300, 100)
            'M75.0 0.0L150.0 50.0L300.0 100.0'
        """
        low, high = self.ends
        scale = height / (high - low) if high > low else 0.0
        shown = _thin_out(line)
        points = (
            f"{width * step / max(self.last_step, 1):.1f} "
            f"{height - (value - low) * scale if scale else height / 2:.1f}"
            for step, value in shown
        )
        return "M" + "L".join(points)


def get_curves(logs: Sequence[TrainingLog]) -> list[Curve]:
    """The curves worth looking at, of values that were logged at two steps or more.

    The loss and its terms; of preferences the margin, the accuracy and how far the chosen answer
    moved from the reference, in nats where all betas are known (it should not fall: then the
    rejected one falls faster, and both become unlikely); of distillation the divergence; of KID how
    imperfect the answers were.
    """
    in_nats = all(log.beta for log in logs if log.get_points(_CHOSEN))
    terms = dict.fromkeys(
        name for log in logs for row in log.history for name in row if name.startswith(_TERM)
    )
    titles = dict(_TITLES)
    if in_nats:
        titles[_CHOSEN] = "log π(chosen) - log π of the reference, nats"
    names = ["loss", *terms, *(name for name in titles if name != "loss")]
    found = []
    for name in names:
        title = titles.get(name, f"Term of the loss: {name.removeprefix(_TERM)}")
        lines = []
        for log in logs:
            divisor = (log.beta or 1.0) if name == _CHOSEN and in_nats else 1.0
            lines.append(tuple((step, value / divisor) for step, value in log.get_points(name)))
        if any(len(line) > 1 for line in lines):
            found.append(Curve(title, tuple(lines)))
    return found


def _thin_out(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """At most some hundred points, the first and the last of them among these."""
    number = min(len(points), _MAX_POINTS)
    if number < 2:
        return points
    return (points[i * (len(points) - 1) // (number - 1)] for i in range(number))


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
