"""Checks of numbers that options and arguments share."""

from __future__ import annotations

import math

import pytest

from sense_trl.errors import InputError, check_at_least, check_positive


@pytest.mark.parametrize(
    "value, message",
    [
        (0, "`size` is 0; expected at least 1."),
        (0.5, "`size` is 0.5; expected a finite number of at least 1."),
        (math.nan, "`size` is nan; expected a finite number of at least 1."),
        (math.inf, "`size` is inf; expected a finite number of at least 1."),
    ],
)
def test_what_is_too_small_or_endless_is_named(value, message):
    check_at_least(1, other=1, none=None)
    with pytest.raises(InputError) as error:
        check_at_least(1, other=1, none=None, size=value)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf])
def test_what_is_not_above_0_is_named(value):
    check_positive(other=1e-300, none=None)
    with pytest.raises(InputError, match=f"`rate` is {value!r}; expected a finite number above 0"):
        check_positive(other=1, rate=value)
