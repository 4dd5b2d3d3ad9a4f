"""The day of a training whose chat template writes today's date."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path
from typing import Any

from sense_trl.errors import InputError
from sense_trl.template_date import fix_template_date, writes_date
from sense_trl.trainers.teachers.cache import read_settings

logger = logging.getLogger(__name__)


def hold_template_date(args: Any, tokenizer: Any) -> None:
    """Fix the day that the chat template of a training is told, and write it to `args`.

    Args:
        args: config of one of our trainers; a `template_date` of None becomes that of its teacher
            cache, or today's.
        tokenizer: of the trainer; nothing happens if its template writes no date.

    Raises:
        InputError: `template_date` is another day than that of the teacher cache.
    """
    if not writes_date(tokenizer):
        return
    path = getattr(args, "teacher_cache", None)
    cached = None if path is None else read_settings(Path(path)).template_date
    if cached is not None and args.template_date not in (None, cached):
        raise InputError(
            f"`template_date` is {args.template_date!r}, but the prompts of `teacher_cache` "
            f"{path!r} were written on {cached!r}, which the chat template tells. Leave the date "
            "out, or make a cache of that day."
        )
    if args.template_date is None:
        args.template_date = cached or date.today().isoformat()
        logger.warning(
            "The chat template writes the date. All rows are written as on %s; set "
            "`template_date: '%s'` where this training is resumed, or its caches are used again, "
            "on another day.",
            args.template_date,
            args.template_date,
        )
    fix_template_date(tokenizer, args.template_date)
