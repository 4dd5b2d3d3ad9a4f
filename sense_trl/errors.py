"""Exceptions: one class per boundary, all under `SenseTRLError`.

A wrong SQL query is a verdict, never an exception; a database that cannot be opened is an
exception, never a verdict. The command line prints any `SenseTRLError` as one paragraph and exits
with code 2.
"""

from __future__ import annotations


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
