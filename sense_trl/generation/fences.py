"""Answers that are whole once the fenced block with their query is closed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from sense_trl.generation.generator import Completion
from sense_trl.prompts import extract_sql

_FENCE: Final = re.compile(r"[ \t]*(`{3,}|~{3,})([^\n`]*)")
_QUERY: Final = re.compile(r"\s*(?:--[^\n]*\n\s*)*\(*\s*(?:SELECT|WITH)\b", re.IGNORECASE)
# Each is read by `extract_sql` from the beginning of the text.
_MAX_BLOCKS: Final = 8


def find_block_end(text: str) -> int | None:
    """Where the first fenced block with a query ends, its closing fence included.

    Blocks of something else and those within reasoning are passed over. A fence that is still being
    written, or that opens a further block, closes nothing.

    Returns:
        The number of characters up to there; None where there is no such block.

    Example:
        >>> find_block_end("Sure:\\n```sql\\nSELECT 1\\n```\\nIt counts.")
        25
        >>> find_block_end("Sure:\\n```sql\\nSELECT 1\\n``") is None
        True
    """
    mark, start, position, num_blocks = "", 0, 0, 0
    for line in text.splitlines(keepends=True):
        begins, position = position, position + len(line)
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if not mark:
            mark, start = fence[1], position
        elif fence[1].startswith(mark) and not fence[2].strip():
            end = begins + fence.end()
            if _QUERY.match(text, start, begins):
                # Nothing is found within reasoning.
                found = extract_sql(text[:end]).strip()
                if found and found in text[start:begins]:
                    return end
                num_blocks += 1
                if num_blocks == _MAX_BLOCKS:
                    return None
            mark = ""
    return None


def close_at_fence(completion: Completion) -> Completion:
    """The completion up to the end of its first fenced block with a query, finished; or itself."""
    end = find_block_end(completion.text)
    if end is None:
        return completion
    return replace(completion, text=completion.text[:end], finished=True)
