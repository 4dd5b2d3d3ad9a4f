"""Output for a terminal: results and texts made harmless, and quiet libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sense_trl.database.engine import QueryResult
    from sense_trl.options import ExtractOptions

# A value may be a megabyte long, and rich takes a second for a tenth of it.
_MAX_CELL_LENGTH: Final = 300
# Predictions with more than SQL from which on a file looks like answers of a chat model.
_MIN_CHAT_SHARE: Final = 0.05


def format_result(result: QueryResult, max_rows: int, *, max_width: int | None = None) -> Any:
    """The first rows of a result for rich's console, or why there are none.

    Args:
        result: of a query.
        max_rows: rows to show.
        max_width: characters beyond which a row is shown with a line per column; None for never.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not result.ok:
        return Text(make_visible(f"{result.status}: {result.error}"), style="yellow")
    names = [make_visible(name) for name in result.columns]
    rows = [[_format_cell(value) for value in row] for row in result.rows[:max_rows]]
    count = Text(f"{len(result.rows):,} row{'' if len(result.rows) == 1 else 's'}", style="italic")
    more = [Text("…")] if len(result.rows) > len(rows) else []
    if max_width is not None and _get_width([names, *rows]) > max_width:
        lines = ["\n".join(map(": ".join, zip(names, row, strict=True))) for row in rows]
        return Group(count, *(Text(f"{line}\n") for line in lines), *more)
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(count, table, *more)


def make_visible(text: str) -> str:
    """Text that cannot steer the terminal: models write escape sequences too."""
    from sense_trl.database.text import show_text

    shown = show_text(text)
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in shown)


def hint_at_chat(
    console: Any, path: str, predictions: Collection[str], options: ExtractOptions
) -> None:
    """Say so where many predictions hold more than SQL and `--extract` was not given."""
    from sense_trl.evaluation.predictions import count_chat

    if options.extract:
        return
    num_chat = count_chat(list(predictions))
    if num_chat > _MIN_CHAT_SHARE * len(predictions):
        console.print(
            f"hint: {num_chat} of {len(predictions)} predictions in {path} hold more than SQL "
            "(fences, tags, a label or prose); --extract takes the SQL out",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def name_first(names: Collection[str]) -> str:
    """The first five of some names, and whether there are more."""
    return ", ".join([*islice(names, 5), *(["..."] if len(names) > 5 else [])])


def quieten_libraries() -> None:
    """Hide what libraries tell their developers; errors and our own messages stay."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # It announces, as a warning, that an optional faster kernel is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _format_cell(value: object) -> str:
    if value is None:
        return "NULL"
    text = f"x'{value[:_MAX_CELL_LENGTH].hex()}'" if isinstance(value, bytes) else str(value)
    cut = text if len(text) <= _MAX_CELL_LENGTH else f"{text[:_MAX_CELL_LENGTH]}…"
    return make_visible(cut)


def _get_width(rows: list[list[str]]) -> int:
    from rich.cells import cell_len

    widths = [
        max(cell_len(line) for cell in column for line in cell.split("\n"))
        for column in zip(*rows, strict=True)
    ]
    # Two spaces between columns.
    return sum(widths) + 2 * (len(widths) - 1)
