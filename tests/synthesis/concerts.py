"""A small database of concerts, and a `random.Random` that always takes the first choice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCHEMA = (Path(__file__).resolve().parents[1] / "sql" / "cases" / "schema.sql").read_text()
ROWS = """
INSERT INTO singer VALUES (1, 'Ann Lee', 'France', 31), (2, 'Bo', 'France', 25), (3, 'Cy', 'Spain', 44),
  (4, 'Di', 'Spain', 25), (5, 'Ed Lee', 'Italy', 52);
INSERT INTO song VALUES (1, 'Blue Moon', 1999, 1), (2, 'Red Sun', 2004, 1), (3, 'New Moon', 2004, 3),
  (4, 'Rain', 2011, 4);
INSERT INTO stadium VALUES (1, 'North Park', 900), (2, 'South Park', 1500), (3, 'Old Hall', 400);
INSERT INTO concert VALUES (1, 'Summer', '2014-06-01', 1), (2, 'Winter', '2014-12-01', 1),
  (3, 'Summer', '2015-06-01', 2), (4, 'Spring', '2016-03-01', 2);
INSERT INTO singer_in_concert VALUES (1, 1), (1, 2), (2, 1), (3, 3), (4, 5), (4, 1);
"""


class FirstChoice(random.Random):
    """Draws nothing: the first of every choice."""

    def random(self) -> float:
        return 0.0

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[0]


def make_concerts(fresh_db: Callable[..., Path], name: str = "concerts") -> Path:
    return fresh_db(SCHEMA + ROWS, name=name)
