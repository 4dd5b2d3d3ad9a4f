"""What models and databases hold, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sense_trl.database.engine import QueryResult

__all__ = ["format_result", "make_visible"]


def format_result(result: QueryResult, max_rows: int) -> Any:
    """The first rows of a result as a table of rich, or why there is none."""
    from rich.table import Table
    from rich.text import Text

    if not result.ok:
        return Text(make_visible(f"{result.status}: {result.error}"), style="yellow")
    count = f"{len(result.rows):,} row{'' if len(result.rows) == 1 else 's'}"
    table = Table(title=count, title_justify="left", box=None, pad_edge=False)
    for name in result.columns:
        table.add_column(Text(make_visible(name)))
    for row in result.rows[:max_rows]:
        table.add_row(*(Text("NULL" if v is None else make_visible(str(v))) for v in row))
    if len(result.rows) > max_rows:
        table.add_row("…")
    return table


def make_visible(text: str) -> str:
    """Text that cannot steer the terminal: models write escape sequences too."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
