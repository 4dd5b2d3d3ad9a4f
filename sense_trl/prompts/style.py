"""`PromptStyle`: everything that decides how a question becomes a prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, get_args, get_type_hints
from urllib.parse import urlsplit

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.options import PromptOptions, option_of
from sense_trl.prompts.messages import INSTRUCTION
from sense_trl.schema.formats import SCHEMA_STYLES

logger = logging.getLogger(__name__)

STYLE_FILE: Final = "sense_prompt.json"
NAME_LINKER: Final = "names"
"""The `linker` that goes by names and keys and needs no model."""
ANSWER_FORMS: Final = {
    "sql": "",
    "reasoning": " First say in a few short sentences, between <reasoning> and </reasoning>, which "
    "tables, columns and values are needed. Then write the query and nothing else.",
}
"""Form of the answer to what it adds to the instruction; `extract_sql` reads all of them."""
_FORMAT: Final = 1
# What a field means to hashes, to the settings of runs and in a file that lacks it: another default
# must change no prompt that was written down.
_UNSAID: Final[dict[str, Any]] = {"num_matched_values": 0}
_CHOICES: Final = {"schema_style": SCHEMA_STYLES, "answer_form": tuple(ANSWER_FORMS)}
# What training writes inside the folder of a model.
_INNER_FOLDER: Final = re.compile(r"adapter|checkpoint-\d+")
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_MINIMA: Final = {
    "num_values": 0,
    "max_value_chars": 1,
    "num_matched_values": 0,
    "max_description_chars": 10,
    "max_schema_tokens": 1,
    "linked_tables": 1,
    "linked_columns": 1,
}


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The way a question becomes a prompt: the same in training, sampling, evaluation and use.

    It is written as `sense_prompt.json` beside a model, so that whoever asks the model later asks
    as it was trained.

    Raises:
        InputError: a value is of another type, out of its range or not known.

    Example:
        >>> style = PromptStyle(schema_style="codes", num_values=3)
        >>> style.conflicts_with(PromptStyle(schema_style="codes"))
        {'num_values': (3, 0)}
        >>> PromptStyle(num_matched_values=0).explicit  # names alone
        {}
    """

    schema_style: str = option_of(PromptOptions, "schema_style", default="compact")
    num_values: int = option_of(PromptOptions, "num_values", default=0)
    max_value_chars: int = option_of(PromptOptions, "max_value_chars", default=40)
    num_matched_values: int = option_of(PromptOptions, "num_matched_values", default=5)
    descriptions: bool = option_of(PromptOptions, "descriptions", default=False)
    max_description_chars: int = option_of(PromptOptions, "max_description_chars", default=150)
    max_schema_tokens: int | None = option_of(PromptOptions, "max_schema_tokens")
    linker: str | None = option_of(PromptOptions, "linker")
    linked_tables: int = option_of(PromptOptions, "linked_tables", default=6)
    linked_columns: int = option_of(PromptOptions, "linked_columns", default=10)
    shown_columns: tuple[str, ...] = option_of(PromptOptions, "shown_columns", default=())
    hidden_columns: tuple[str, ...] = option_of(PromptOptions, "hidden_columns", default=())
    instruction: str = option_of(PromptOptions, "instruction", default=INSTRUCTION)
    answer_form: str = option_of(PromptOptions, "answer_form", default="sql")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            hint = hints[item.name]
            if hint == tuple[str, ...] and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, item.name, value)
            if not _is_a(value, hint):
                raise InputError(f"`{item.name}` is {value!r}; expected {_KINDS[hint]}.")
            if value is not None and item.name in _MINIMA and value < _MINIMA[item.name]:
                raise InputError(
                    f"`{item.name}` is {value}; expected at least {_MINIMA[item.name]}."
                )
            choices = _CHOICES.get(item.name)
            if choices is not None and value not in choices:
                raise InputError(
                    f"`{item.name}` is {value!r}; expected one of {', '.join(choices)}."
                )
        if not self.instruction.strip():
            raise InputError("`instruction` is empty; say what is to be written.")

    @property
    def hash(self) -> str:
        """Identity of the style: 16 hexadecimal digits, from what is `explicit`."""
        text = json.dumps([_FORMAT, self.explicit], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def explicit(self) -> dict[str, Any]:
        """The fields that differ from the style of a file without any: names and keys alone."""
        conflicts = self.conflicts_with(PromptStyle(**_UNSAID))
        return {name: own for name, (own, _) in conflicts.items()}

    @property
    def full_instruction(self) -> str:
        """The instruction, with what it says about the form of the answer."""
        return self.instruction + ANSWER_FORMS[self.answer_form]

    def conflicts_with(self, other: PromptStyle) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, with the value here and the value there."""
        names = [item.name for item in dataclasses.fields(self)]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def check_equals(self, saved: PromptStyle, place: str | Path) -> None:
        """Refuse a style that is not the one a model was trained with.

        Args:
            saved: the style of the model.
            place: where it was found, for the message.

        Raises:
            InputError: they differ; the message names both values of each field.
        """
        if conflicts := self.conflicts_with(saved):
            told = "; ".join(
                f"`{name}` is {own!r}, the model's is {other!r}"
                for name, (own, other) in conflicts.items()
            )
            raise InputError(
                f"The prompt differs from the one in {str(place)!r}: {told}. Leave these options "
                "out to ask as the model was trained, or give --force_style to ask otherwise."
            )

    def save(self, folder: str | Path) -> Path:
        """Write `sense_prompt.json` into a folder and return its path."""
        path = Path(folder) / STYLE_FILE
        record = {"format": _FORMAT, "style": dataclasses.asdict(self), "hash": self.hash}
        write_text_atomically(
            path, json.dumps(record, ensure_ascii=False, indent=2) + "\n", is_shared=True
        )
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the `sense_prompt.json` of a folder.

        A field that it lacks means what it did when the file was written, not today's default.

        Raises:
            InputError: there is none, it is no JSON, of another format, or a field is not known or
                unusable.
        """
        path = Path(folder) / STYLE_FILE
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{str(folder)!r} holds no {STYLE_FILE}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{str(path)!r} cannot be read ({error}).") from error
        if not isinstance(record, dict) or not isinstance(record.get("style"), dict):
            raise InputError(f"{str(path)!r} is no prompt style: expected an object with `style`.")
        if record.get("format") != _FORMAT:
            raise InputError(
                f"{str(path)!r} has the format {record.get('format')!r}, this version reads "
                f"{_FORMAT}. Another version of the package wrote it: use that one."
            )
        return cls.from_mapping({**_UNSAID, **record["style"]}, str(path))

    @classmethod
    def find(cls, model: str | Path) -> Self | None:
        """The style of a model; `None` for one that does not say, such as one on the hub.

        Args:
            model: a folder, also the `adapter` or `checkpoint-N` in it; or a hub id.

        Raises:
            InputError: as `load`, for a file that is there.
        """
        folder = Path(model).absolute()
        inner = [folder.parent] if _INNER_FOLDER.fullmatch(folder.name) else []
        found = next((f for f in (folder, *inner) if (f / STYLE_FILE).exists()), None)
        return None if found is None else cls.load(found)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], place: str) -> Self:
        """A style from a mapping of its fields.

        Args:
            values: fields by name; the others have their defaults.
            place: where they come from, for messages.

        Raises:
            InputError: a field is not known or unusable.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InputError(
                f"{place}: unknown field {unknown[0]!r}; expected some of {', '.join(known)}."
            )
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error


def get_style(
    options: PromptOptions, *models: str | Path | None, base_url: str | None = None
) -> PromptStyle:
    """The style that options ask for, on top of what models were trained with.

    Args:
        options: what is `None` there is as the models have it, or at its default.
        models: folders or hub ids; the first that has a style decides. Not looked at with
            `base_url`: a server's names for models are no folders.
        base_url: the server that is asked. One of another machine is sent no values by default;
            that they are left out is logged.

    Raises:
        InputError: an option or another model says otherwise, and `force_style` is not given; an
            option or a style's file is unusable; see `check_server`.
    """
    own = () if base_url is not None else models
    places = [place for place in (*own, options.prompt_style) if place is not None]
    if options.prompt_style is not None:
        PromptStyle.load(options.prompt_style)
    found = [(place, style) for place in places if (style := PromptStyle.find(place)) is not None]
    names = {item.name for item in dataclasses.fields(PromptStyle)}
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    base = found[0][1] if found else PromptStyle()
    if not found and "num_matched_values" not in given and not _may_send(options, base_url):
        base = dataclasses.replace(base, num_matched_values=0)
        logger.warning(
            "Values that a question names are left out of its prompt, also for a model that was "
            "trained with them: %s is not this machine. Give --send_values to send them.",
            base_url,
        )
    style = dataclasses.replace(base, **given)
    if not options.force_style:
        for place, saved in found:
            style.check_equals(saved, place)
    check_server(style, options, base_url)
    return style


def check_server(style: PromptStyle, options: PromptOptions, base_url: str | None) -> None:
    """Refuse to send values of databases to another machine where nobody has asked for it.

    They are asked for by naming them in the options; that a model was trained with them is no
    consent.

    Raises:
        InputError: the style shows values, and it is not these options that say so.
    """
    shows = [name for name in ("num_values", "num_matched_values") if getattr(style, name)]
    if _may_send(options, base_url) or all(getattr(options, name) is not None for name in shows):
        return
    raise InputError(
        f"The model was trained on prompts with values of the database (`{'`, `'.join(shows)}`), "
        f"which would be sent to {base_url}. Give --send_values if they may leave this machine."
    )


def _may_send(options: PromptOptions, base_url: str | None) -> bool:
    """Whether values may go to a server whatever the style: it is on this machine, or allowed."""
    return base_url is None or options.send_values or (urlsplit(base_url).hostname or "") in _HERE


_KINDS: Final[dict[Any, str]] = {
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    int | None: "a whole number or nothing",
    str | None: "a text or nothing",
    tuple[str, ...]: "a list of texts",
}


def _is_a(value: object, hint: Any) -> bool:
    if hint == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    # bool is a kind of int.
    return type(value) in (get_args(hint) or (hint,))
