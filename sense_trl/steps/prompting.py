"""Prompts of a model's style: the task of a stage, and the style written beside what it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.errors import InputError
from sense_trl.options import PromptOptions
from sense_trl.prompts.style import NAME_LINKER, PromptStyle, get_style
from sense_trl.prompts.writer import MakeLinker, PromptWriter
from sense_trl.run_folder import fingerprint_folder
from sense_trl.task import TextToSQLTask, load_task, read_schemas

if TYPE_CHECKING:
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import ExecutionLimits
    from sense_trl.options import DataArguments


def load_styled_task(
    data: DataArguments,
    *models: str | None,
    base_url: str | None = None,
    limits: ExecutionLimits | None = None,
) -> TextToSQLTask:
    """The questions of a stage, with prompts as its models were trained or `data` says.

    Args:
        data: databases, questions and prompts.
        models: folders or hub ids, the one that is asked or trained first; with `base_url` the name
            that a server has for it.
        base_url: of the server that is asked, if one is.
        limits: see `load_task`.

    Raises:
        InputError: see `get_style` and `load_task`.
    """
    style = get_style(data, *models, base_url=base_url)
    name = None if base_url else next(filter(None, models), None)
    counter = get_token_counter(style, data, name)
    return load_task(
        data, style, count_tokens=counter, make_linker=get_linker(style), limits=limits
    )


def open_writer(
    options: PromptOptions,
    catalog: DatabaseCatalog,
    db_id: str,
    model: str | None,
    *,
    base_url: str | None = None,
) -> PromptWriter:
    """Open the writer of a model's prompts for one database; to be closed.

    Raises:
        InputError: see `get_style` and `read_schemas`.
        DatabaseError: see `read_schemas`.
    """
    own = None if base_url else model
    style = get_style(options, own, base_url=base_url)
    return PromptWriter(
        catalog,
        style,
        schemas=read_schemas(catalog, {db_id}, options.tables_json),
        description_source=options.description_source,
        count_tokens=get_token_counter(style, options, own),
        make_linker=get_linker(style),
    )


def identify_style(style: PromptStyle, description_source: str | None) -> dict[str, Any]:
    """Describe a style by what results depend on, for the settings of a run: files by content.

    Only what is `explicit` is there, besides the first: there may be more options some day.
    """
    settings = style.explicit
    if description_source is not None:
        settings["description_source"] = fingerprint_folder(
            description_source, (".csv", ".json", ".yaml", ".yml")
        )
    if style.linker not in (None, NAME_LINKER):
        settings["linker"] = fingerprint_folder(str(style.linker), (".json", ".safetensors"))
    return {"schema_style": style.schema_style, **settings}


def replace_prompt_options(settings: Mapping[str, Any], style: PromptStyle) -> dict[str, Any]:
    """The settings of a run with the style that its prompts have in place of the options for it.

    What an option that is not given means is the model's to say, or a version's.
    """
    options = {item.name for item in fields(PromptOptions)} - {"tables_json"}
    kept = {name: value for name, value in settings.items() if name not in options}
    return kept | identify_style(style, settings["description_source"])


def get_linker(style: PromptStyle) -> MakeLinker | None:
    """What makes the linkers of a style; `None` for one that has none, or goes by names.

    Raises:
        InputError: the folder that it names holds none.
    """
    if style.linker in (None, NAME_LINKER):
        return None
    from sense_trl.steps.linking import open_linker

    return open_linker(str(style.linker))


def get_token_counter(
    style: PromptStyle, options: PromptOptions, model: str | None
) -> Callable[[str], int] | None:
    """A function that counts the tokens of a schema; `None` where the style does not limit them.

    Raises:
        InputError: there is no tokenizer to count with.
        ModelError: there is no such tokenizer.
    """
    if style.max_schema_tokens is None:
        return None
    name = options.prompt_tokenizer or model
    if name is None:
        raise InputError(
            f"`max_schema_tokens` is {style.max_schema_tokens}, but there is no tokenizer to count "
            "with. Name that of the model as `prompt_tokenizer`."
        )
    from sense_trl.checkpoints.starting_model import load_stage_tokenizer

    tokenizer = load_stage_tokenizer(name)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def get_save_callback(style: PromptStyle) -> Any:
    """A `transformers` callback that writes the style into every checkpoint."""
    from transformers import TrainerCallback

    class _StyleCallback(TrainerCallback):  # type: ignore[misc]
        """Runs after the trainer has written a checkpoint."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and folder.is_dir():
                style.save(folder)

    return _StyleCallback()
