"""`choose_values`: a few values of each column, to show a model how they are written."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from sense_trl.database.engine import SQLEngine
from sense_trl.database.profile import read_rows, shape_of
from sense_trl.database.text import get_nameable_tables
from sense_trl.prompts.harmless import is_harmless
from sense_trl.prompts.privacy import PrivacyRules, Sensitivity
from sense_trl.schema.naming import ColumnKey, get_key

# A format of fewer values than this is taken for a slip.
_MIN_SHARE: Final = 0.02
_MAX_CODES: Final = 12
_NUMBERS: Final = re.compile("9+")
_SEVERAL_WORDS: Final = re.compile(r"a(?:[ ,.'&-]+a)*")


@dataclass(frozen=True, slots=True)
class ChosenValues:
    """Values to show, and what is not shown.

    Attributes:
        values: by column; columns without are not there.
        sensitivity: of the columns that look like secrets or personal data.
        left_out: number of columns of which nothing is shown by reason, and of single values that
            are `"too long"` or `"unsafe"` (line breaks, control tokens, fences).
    """

    values: Mapping[ColumnKey, tuple[object, ...]]
    sensitivity: Mapping[ColumnKey, Sensitivity] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


def choose_values(
    engine: SQLEngine, *, num_values: int, max_chars: int, rules: PrivacyRules | None = None
) -> ChosenValues:
    """Choose up to `num_values` values of each column of each table.

    Of at most 2,000 rows of a table, spread over all of it. The most frequent value of each format
    comes first (dates beside years, codes beside words), the other frequent ones follow. Of a
    column in which no value comes twice, one is shown for its format. Numbers are shown where
    there are so few that they are codes. Views show none.

    Args:
        engine: an open database.
        num_values: how many of each column, >= 0.
        max_chars: longer values are left out.
        rules: which columns show none.

    Raises:
        DatabaseError: the database cannot be read.
    """
    rules = rules or PrivacyRules()
    values: dict[ColumnKey, tuple[object, ...]] = {}
    sensitivity: dict[ColumnKey, Sensitivity] = {}
    left_out: Counter[str] = Counter()
    for table in get_nameable_tables(engine.get_tables()):
        if table.is_view or not table.columns:
            continue
        rows, _ = read_rows(engine, table)
        columns = list(zip(*rows, strict=True)) or [()] * len(table.columns)
        for column, read in zip(table.columns, columns, strict=True):
            key = get_key(table.name, column.name)
            judged = rules.judge(table.name, column.name, read)
            if judged is not Sensitivity.NONE:
                sensitivity[key] = judged
                left_out[judged] += 1
                continue
            counts = Counter(value for value in read if value is not None)
            # Bytes tell a reader nothing, and a list is no value to compare with.
            shown: dict[object, int] = {
                v: n for v, n in counts.items() if isinstance(v, _SHOWN_TYPES)
            }
            short = {v: n for v, n in shown.items() if len(str(v)) <= max_chars}
            safe = {v: n for v, n in short.items() if is_harmless(str(v)) and str(v).strip()}
            left_out["too long"] += len(shown) - len(short)
            left_out["unsafe"] += len(short) - len(safe)
            if found := _choose(safe, num_values):
                values[key] = found
    return ChosenValues(values, sensitivity, {name: n for name, n in left_out.items() if n})


_SHOWN_TYPES: Final = (str, int, float, Decimal, datetime.date, datetime.time)


def _choose(counts: Mapping[object, int], num_values: int) -> tuple[object, ...]:
    """The most frequent value of each format, then the most frequent others."""
    ordered = sorted(counts, key=lambda value: -counts[value])
    is_repeating = bool(ordered) and counts[ordered[0]] > 1
    if not (is_repeating and len(counts) <= _MAX_CODES):
        ordered = [value for value in ordered if not isinstance(value, (int, float, Decimal))]
    if not is_repeating:
        return tuple(ordered[: min(num_values, 1)])
    shapes: Counter[str] = Counter()
    for value in ordered:
        shapes[_get_shape(value)] += counts[value]
    first: dict[str, object] = {}
    for value in ordered:
        first.setdefault(_get_shape(value), value)
    total = sum(counts.values())
    leading = [first[shape] for shape, n in shapes.most_common() if n >= _MIN_SHARE * total]
    # As many formats as there is room for, and of one format the frequent values.
    return tuple(dict.fromkeys([*leading[:num_values], *ordered]))[:num_values]


def _get_shape(value: object) -> str:
    """The format of a value; words of any number and length are one."""
    if not isinstance(value, str):
        return type(value).__name__
    return _SEVERAL_WORDS.sub("a", _NUMBERS.sub("9", shape_of(value)))
