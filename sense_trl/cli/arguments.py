"""Flags that several commands share; imports nothing heavy."""

from __future__ import annotations

import argparse

__all__ = ["add_data_arguments", "add_execution_arguments"]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The questions and the databases they are asked of."""
    parser.add_argument(
        "--questions",
        required=True,
        help="questions with gold SQL, as JSON Lines or a JSON array (Spider, BIRD or own format)",
    )
    parser.add_argument(
        "--database",
        required=True,
        help="a database file (.sqlite, .db, .duckdb), a folder of them, or a Spider or BIRD root",
    )


def add_execution_arguments(
    parser: argparse.ArgumentParser, *, kept: str = "results of slow gold queries"
) -> None:
    """How SQL is executed.

    Args:
        parser: of the command.
        kept: what the command keeps in `--cache-dir`.
    """
    parser.add_argument(
        "--num-workers",
        type=int,
        default=None,
        help="worker processes; 0 runs queries in this process, without a way to stop some of them",
    )
    parser.add_argument("--timeout-s", type=float, default=30.0, help="seconds each query may run")
    parser.add_argument("--cache-dir", default=None, help=f"folder to keep {kept} in")
