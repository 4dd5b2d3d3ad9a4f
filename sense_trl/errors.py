"""Exceptions: one class per boundary, all under `SenseTRLError`.

A wrong SQL query is a verdict, never an exception; a database that cannot be opened is an
exception, never a verdict. The command line prints any `SenseTRLError` as one paragraph and exits
with code 2.
"""

from __future__ import annotations

import math


class SenseTRLError(Exception):
    """Base class of every error that sense_trl raises on purpose."""


class InputError(SenseTRLError, ValueError):
    """Something the user passed or wrote (an argument, a file, a line of it) is unusable."""


class OutputError(SenseTRLError, OSError):
    """A result cannot be written: the device is full, read-only or gone."""


class DatabaseError(SenseTRLError):
    """A database file is missing, is not a database, or cannot be read."""


class ModelError(SenseTRLError):
    """A model or its tokenizer cannot be loaded or used for what was asked."""


class ExecutionBackendError(SenseTRLError):
    """Our own executor failed (a worker that could not be replaced); says nothing about the SQL."""


def check_at_least(least: float, **values: float | None) -> None:
    """Refuse options and arguments, by name, that are below a number or not finite.

    Args:
        least: the smallest number that is taken.
        values: None is passed over.

    Raises:
        InputError: names the first.

    Example:
        >>> check_at_least(1, batch_size=1, max_pairs=None)
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            kind = "a finite number of " if isinstance(value, float) else ""
            raise InputError(f"`{name}` is {value!r}; expected {kind}at least {least:g}.")


def check_positive(**values: float | None) -> None:
    """Refuse options and arguments, by name, that are not above 0 or not finite, as above."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"`{name}` is {value!r}; expected a finite number above 0.")
