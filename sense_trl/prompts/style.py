"""`PromptStyle`: everything that decides how a question becomes a prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, get_args, get_type_hints

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.prompts.messages import INSTRUCTION
from sense_trl.schema.formats import SCHEMA_STYLES

__all__ = ["ANSWER_FORMS", "STYLE_FILE", "PromptStyle"]

STYLE_FILE: Final = "sense_prompt.json"
ANSWER_FORMS: Final = {
    "sql": "",
    "reasoning": " First say in a few short sentences, between <reasoning> and </reasoning>, which "
    "tables, columns and values are needed. Then write the query and nothing else.",
}
"""Form of the answer to what it adds to the instruction; `extract_sql` reads all of them."""
_FORMAT: Final = 1
_MINIMA: Final = {
    "num_values": 0,
    "max_value_chars": 1,
    "num_matched_values": 0,
    "max_description_chars": 10,
    "max_schema_tokens": 1,
}


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a question becomes a prompt: the same in training, sampling, evaluation and use.

    It is written as `sense_prompt.json` beside a model, so that whoever asks the model later asks
    as it was trained.

    Raises:
        InputError: a value is of another type, out of its range or not known.

    Example:
        >>> style = PromptStyle(schema_style="codes", num_values=3)
        >>> style.conflicts_with(PromptStyle(schema_style="codes"))
        {'num_values': (3, 0)}
    """

    schema_style: str = field(
        default="compact",
        metadata={
            "help": f"How a schema is written: {', '.join(SCHEMA_STYLES)}.",
            "choices": SCHEMA_STYLES,
        },
    )
    num_values: int = field(
        default=0,
        metadata={
            "help": "Values shown of each column, chosen by frequency and shape; 0 shows none. "
            "Columns that look like secrets or personal data show none."
        },
    )
    max_value_chars: int = field(
        default=40, metadata={"help": "Longer values are not shown, in characters."}
    )
    num_matched_values: int = field(
        default=0,
        metadata={
            "help": "Values shown with a question because its words name them, at most; 0 shows "
            "none. Each database is indexed once, in the cache."
        },
    )
    descriptions: bool = field(
        default=False,
        metadata={"help": "Whether to show what is known of the meaning of tables and columns."},
    )
    max_description_chars: int = field(
        default=150,
        metadata={"help": "Descriptions of tables and columns are cut here, in characters."},
    )
    max_schema_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the schema may take. A larger one is cut to the tables that the "
            "question seems to be about. Not limited if not given."
        },
    )
    shown_columns: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Columns whose values may be shown though they look like secrets or personal "
            "data, as patterns of table.column: singer.name, customers.*, *.email."
        },
    )
    hidden_columns: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Columns whose values are never shown, as patterns of table.column."},
    )
    instruction: str = field(
        default=INSTRUCTION,
        metadata={"help": "What the prompt begins with; {dialect} becomes the SQL dialect's name."},
    )
    answer_form: str = field(
        default="sql",
        metadata={
            "help": "What an answer is: sql alone, or reasoning in a few sentences before it.",
            "choices": tuple(ANSWER_FORMS),
        },
    )

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
            choices = item.metadata.get("choices")
            if choices is not None and value not in choices:
                raise InputError(
                    f"`{item.name}` is {value!r}; expected one of {', '.join(choices)}."
                )
        if not self.instruction.strip():
            raise InputError("`instruction` is empty; say what is to be written.")

    @property
    def hash(self) -> str:
        """Identity of the style: 16 hexadecimal digits, from what is not left at its default."""
        default = PromptStyle()
        changed = {name: pair[0] for name, pair in self.conflicts_with(default).items()}
        text = json.dumps([_FORMAT, changed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
        return cls.from_mapping(record["style"], str(path))

    @classmethod
    def find(cls, folder: str | Path) -> Self | None:
        """The style of a folder; `None` if it holds none.

        Raises:
            InputError: as `load`, for a file that is there.
        """
        return cls.load(folder) if (Path(folder) / STYLE_FILE).exists() else None

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


_KINDS: Final[dict[Any, str]] = {
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    int | None: "a whole number or nothing",
    tuple[str, ...]: "a list of texts",
}


def _is_a(value: object, hint: Any) -> bool:
    if hint == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    # bool is a kind of int.
    return type(value) in (get_args(hint) or (hint,))
