"""Asking a teacher about the answers of a dataset before a student is trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.checkpoints.starting_model import load_for_generation, load_stage_tokenizer
from sense_trl.errors import InputError
from sense_trl.template_date import fix_template_date, writes_date

if TYPE_CHECKING:
    from sense_trl.trainers.teachers.cache import TeacherCache


def load_answers(path: str, *, argument: str = "rows") -> list[dict[str, Any]]:
    """The rows of a dataset file.

    Args:
        path: `.parquet` or JSON Lines, with the columns of `get_token_row`.
        argument: what messages call it.

    Raises:
        InputError: the file is missing, empty, or not what its name says.
    """
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]]
    try:
        if path.endswith(".parquet"):
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            text = Path(path).read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(
            f"`{argument}` is {path!r}, which cannot be read ({error}). Expected a .parquet file, "
            "or JSON Lines."
        ) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"`{argument}` {path!r} holds no rows; expected one JSON object a line.")
    return rows


def cache_teacher(
    model: str,
    rows: Sequence[dict[str, Any]],
    output: str | Path,
    *,
    tokenizer: str | None = None,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    fold_system_message: bool = False,
    template_date: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> TeacherCache:
    """Ask the teacher in a folder about the answers of `rows`.

    Args:
        model: folder of a model or of an adapter, or a hub id.
        rows: see `get_token_row`.
        output: folder of the cache.
        tokenizer: folder or hub id of the student's, whose chat template the prompts are written
            with; the teacher's if not given.
        dtype: type of the weights, or, in 4 bits, the one they are multiplied in: bfloat16 if it
            is `"auto"`.
        load_in_4bit: hold the teacher in 4 bits.
        fold_system_message: as in the student's training.
        template_date: the day that a chat template which writes the date is told; that of the cache
            in `output`, or today, if not given.
        on_progress: called with the number of rows finished since the last call.
        options: of `build_teacher_cache`.

    Raises:
        InputError: an option is out of range, a row has no answer, the tokenizers differ, or the
            folder holds something else.
        ModelError: the teacher or the tokenizer cannot be loaded, or the chat template cannot hold
            the rows.
    """
    from sense_trl.chat_template import naming_template_errors
    from sense_trl.trainers.rows.formats import prepare_chat_template, unify_row
    from sense_trl.trainers.rows.token_rows import get_token_row
    from sense_trl.trainers.teachers.cache import SETTINGS_FILE, read_settings
    from sense_trl.trainers.teachers.cache_builder import build_teacher_cache
    from sense_trl.trainers.teachers.teacher import check_vocabularies

    if load_in_4bit and dtype == "auto":
        dtype = "bfloat16"
    teacher, own_tokenizer = load_for_generation(model, dtype=dtype, load_in_4bit=load_in_4bit)
    students = own_tokenizer
    if tokenizer is not None:
        students = load_stage_tokenizer(tokenizer)
        num_rows = teacher.get_output_embeddings().weight.shape[0]
        check_vocabularies(students, own_tokenizer, (num_rows, num_rows))
    unified = [unify_row(row, f"row {i}") if "prompt" in row else row for i, row in enumerate(rows)]
    is_chat = prepare_chat_template(unified, students, fold=fold_system_message)
    if not (is_chat and writes_date(students)):
        template_date = None
    else:
        if template_date is None and (Path(output) / SETTINGS_FILE).is_file():
            template_date = read_settings(Path(output)).template_date
        template_date = template_date or date.today().isoformat()
        fix_template_date(students, template_date)
    with naming_template_errors("`rows`"):
        token_rows = [get_token_row(row, students) for row in unified]
    return build_teacher_cache(
        output,
        teacher,
        students,
        token_rows,
        template_date=template_date,
        on_progress=on_progress,
        **options,
    )
