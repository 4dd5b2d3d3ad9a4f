"""Rows of public datasets as the trainers read them: all text, or messages throughout."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sense_trl.chat_template import check_chat_template, fold_system_message
from sense_trl.errors import InputError
from sense_trl.trainers.rows.long_examples import name_row

logger = logging.getLogger(__name__)

PAIR_LAYOUTS: Final[dict[str, dict[str, str]]] = {
    "orca_dpo": {"system": "system", "prompt": "question"},
    "distilabel_orca": {"system": "system", "prompt": "input"},
    "ultrafeedback": {"prompt": "prompt"},
    "implicit_prompt": {},
    "hh_rlhf": {},
}
"""Layouts of public preference data by name, as `select_pair_columns` takes them.

`hh_rlhf` has its conversations written out, `\\n\\nHuman: ...\\n\\nAssistant: ...`.
"""

_ANSWERS: Final = ("completion", "chosen", "rejected")
_CONVERSATIONS: Final = ("prompt", "messages", "conversations")
_ROLES: Final = ("system", "prompt", "chosen", "rejected")
# Columns that change what a prompt says, and that nothing reads.
_UNREAD: Final = ("system", "system_prompt")
_TURN: Final = re.compile(r"\n\n(Human|Assistant):")
_TURN_ROLES: Final = {"Human": "user", "Assistant": "assistant"}

Message = Mapping[str, Any]


def select_pair_columns(dataset: Any, columns: str | Mapping[str, str]) -> Any:
    """Make `prompt`, `chosen` and `rejected` of the columns of another layout.

    Args:
        dataset: a `Dataset` or a stream.
        columns: a name of `PAIR_LAYOUTS`, also as JSON or a mapping of `prompt`, `system`, `chosen`
            and `rejected` to the columns that hold them. What is not named has its own name; a
            `system` text becomes a message in front of the prompt's, unless it is empty.

    Returns:
        The dataset with these columns, text or messages throughout, and all other ones but
        `system`'s.

    Raises:
        InputError: there is no such layout or column, or a row's prompt cannot be told from its
            answers.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list(
        ...     [{"system": "Write SQL.", "question": "?", "chosen": "SELECT 1", "rejected": "1"}]
        ... )
        >>> [message["role"] for message in select_pair_columns(rows, "orca_dpo")[0]["prompt"]]
        ['system', 'user']
    """
    sources = _parse_columns(columns)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("The preference dataset has no rows; expected at least one.")
    if missing := {*sources.values()} - first.keys():
        raise InputError(
            f"`columns` is {columns!r}, but the dataset has no column {sorted(missing)}, only "
            f"{sorted(first)}. Name the columns that hold the prompt and both answers, e.g. "
            '{"system": "system", "prompt": "question", "chosen": "chosen", '
            '"rejected": "rejected"}.'
        )

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        name = name_row(row, index, "pairs")
        new = {role: row[column] for role, column in sources.items()}
        if columns == "hh_rlhf":
            new = {role: _split_transcript(text, name) for role, text in new.items()}
        for role, value in new.items():
            if value is None and role != "system":
                raise InputError(f"`{sources[role]}` is null in {name}. Leave such pairs out.")
        system = new.pop("system", None)
        if system:
            prompt = _as_messages(new["prompt"], "user")
            if prompt[0]["role"] == "system":
                raise InputError(f"`system` is named, but the prompt of {name} has one already.")
            new["prompt"] = [{"role": "system", "content": system}, *prompt]
        elif "system" in sources:
            new["prompt"] = _as_messages(new["prompt"], "user")
        return unify_row(new, name)

    removed = [name for name in {*sources.values(), *_ROLES} if name in first]
    # Without its old columns, so that they may change their type.
    return dataset.map(convert, with_indices=True, remove_columns=removed)


def unify_rows(dataset: Any) -> Any:
    """The dataset with prompts and answers of one kind, text or messages; see `unify_row`.

    Args:
        dataset: a `Dataset` or a stream; returned as it is if its first row needs nothing.

    Raises:
        InputError: a prompt cannot be told from its answers; the row is named.
    """
    first = next(iter(dataset), None)
    if first is None or not {*_ANSWERS} & first.keys():
        return dataset
    unified = unify_row(first, name_row(first, 0, "rows"))
    _warn_of_unread(unified)
    if unified == first:
        return dataset
    changed = [name for name in ("prompt", *_ANSWERS) if name in unified]

    def unify(row: dict[str, Any], index: int) -> dict[str, Any]:
        new = unify_row(row, name_row(row, index, "rows"))
        return {name: new[name] for name in changed}

    removed = [name for name in changed if name in first]
    return dataset.map(unify, with_indices=True, remove_columns=removed)


def unify_row(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The row with its prompt and its answers as text, or all of them as messages.

    * A text beside messages becomes the user's or the assistant's message.
    * Answers that repeat the messages of the prompt lose them; if there is no prompt, or its text
      is the last of these messages, they become the prompt.

    Args:
        row: `prompt`, if it has one, and `completion`, or `chosen` and `rejected`, which may be a
            list of answers.
        name: of the row, for messages.

    Raises:
        InputError: text answers without a prompt, or answers that begin with other messages than
            the prompt or each other.
    """
    columns = [column for column in _ANSWERS if row.get(column) is not None]
    prompt = row.get("prompt")
    answers = [answer for column in columns for answer in get_answers(row[column])]
    if not answers:
        return dict(row)
    for messages in (prompt, *answers):
        if _is_messages(messages) and not all({"role", "content"} <= m.keys() for m in messages):
            raise InputError(
                f"A message of {name} has the keys {sorted(messages[0])}; expected `role` and "
                "`content`."
            )
    if not any(map(_is_messages, [prompt, *answers])):
        if prompt is None:
            raise InputError(
                f"{name[0].upper()}{name[1:]} has the columns {sorted(row)}, but no `prompt`, and "
                "it cannot be told from two texts. Say which columns hold it: "
                'select_pair_columns(dataset, {"prompt": "question"}) of '
                "sense_trl.trainers.rows.formats, or `columns` of `sense-trl dpo`, or `columns` "
                f"with one of {', '.join(PAIR_LAYOUTS)}."
            )
        return dict(row)
    conversations = [_as_messages(answer, "assistant") for answer in answers]
    begin = _get_beginning(prompt, conversations, name)
    new = dict(row)
    if _is_messages(prompt):
        new["prompt"] = prompt
    elif begin:
        new["prompt"] = [*conversations[0][:begin]]
    else:
        new["prompt"] = _as_messages(prompt, "user")
    cut = iter([messages[begin:] for messages in conversations])
    for column in columns:
        several = get_answers(row[column]) is row[column]
        new[column] = [next(cut) for _ in row[column]] if several else next(cut)
    return new


def prepare_chat_template(dataset: Any, tokenizer: Any, *, fold: bool) -> bool:
    """Fold the system message where that is asked for, and check the chat template by the data.

    Args:
        dataset: with the columns that TRL tokenises; its first row says what its messages are.
        tokenizer: whose template is changed.
        fold: whether the system's text belongs in front of the user's.

    Returns:
        Whether the rows are conversations.

    Raises:
        ModelError: the chat template cannot hold them.
    """
    if fold:
        tokenizer.chat_template = fold_system_message(tokenizer.chat_template)
    first: dict[str, Any] = next(iter(dataset), {})
    messages = next((first[name] for name in _CONVERSATIONS if _is_messages(first.get(name))), None)
    if messages is None or {"input_ids", "prompt_ids"} & first.keys():
        return False
    roles = {message.get("role", message.get("from")) for message in messages}
    name = getattr(tokenizer, "name_or_path", "") or "the model"
    check_chat_template(tokenizer, name, has_system="system" in roles)
    return True


def _get_beginning(prompt: Any, conversations: Sequence[Sequence[Message]], name: str) -> int:
    """Count the messages at the beginning of all answers that are the prompt."""
    if _is_messages(prompt):
        # A turn of the user's within an answer is no prompt.
        shown = [_get_content(message) for message in prompt]
        length = len(shown)
        repeats = [
            len(messages) > length and [_get_content(m) for m in messages[:length]] == shown
            for messages in conversations
        ]
        if len({*repeats}) > 1:
            raise InputError(
                f"One answer of {name} repeats the messages of its prompt and another does not, "
                "expected all or none. Leave them out of the answers."
            )
        return length if repeats[0] else 0
    beginnings = [[_get_content(m) for m in messages[:-1]] for messages in conversations]
    if prompt is not None and not any(beginnings):
        return 0
    first = beginnings[0]
    if any(other != first for other in beginnings) or not first:
        raise InputError(
            f"The answers of {name} do not begin with the same messages, so that the prompt cannot "
            "be told from them. Put what was asked into `prompt` and the assistant's message alone "
            "into the answers."
        )
    role, content = first[-1]
    if prompt is not None and (role != "user" or str(content).strip() != str(prompt).strip()):
        raise InputError(
            f"`prompt` of {name} is another text than the last message before the answers, "
            f"{str(content)[:100]!r}. Put the conversation into `prompt` and the assistant's "
            "message alone into the answers."
        )
    return len(first)


def _parse_columns(columns: str | Mapping[str, str]) -> dict[str, str]:
    """The columns that hold prompt, system text and answers, by role."""
    named: Any = columns
    if isinstance(columns, str):
        named = PAIR_LAYOUTS.get(columns)
        if named is None:
            try:
                named = json.loads(columns)
            except ValueError:
                named = None
    is_mapping = isinstance(named, Mapping) and all(isinstance(v, str) for v in named.values())
    if not is_mapping or {*named} - {*_ROLES}:
        raise InputError(
            f"`columns` is {columns!r}; expected one of {', '.join(PAIR_LAYOUTS)}, or the columns "
            f"of {', '.join(_ROLES)} as a mapping."
        )
    sources = {"chosen": "chosen", "rejected": "rejected", **named}
    if len({*sources.values()}) < len(sources):
        raise InputError(f"`columns` is {columns!r}, which names a column twice.")
    return sources


def _split_transcript(text: str, name: str) -> list[dict[str, str]]:
    if not isinstance(text, str):
        raise InputError(f"An answer of {name} is no text; expected a transcript.")
    start, *turns = _TURN.split(text)
    messages = [
        {"role": _TURN_ROLES[role], "content": said.strip()}
        for role, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    if start.strip() or not messages or messages[-1]["role"] != "assistant":
        raise InputError(
            f"An answer of {name} is no transcript that begins with '\\n\\nHuman:' and ends with "
            f"what the assistant says: {text[:100]!r}."
        )
    return messages


def _warn_of_unread(row: Mapping[str, Any]) -> None:
    prompt = row.get("prompt")
    if prompt is None or (_is_messages(prompt) and prompt[0]["role"] == "system"):
        return
    unread = [name for name in _UNREAD if isinstance(row.get(name), str) and row[name].strip()]
    if unread:
        logger.warning(
            "The dataset has the column %r, which is not part of `prompt` and not read. If the "
            "model is to see it, make it a message of the prompt: select_pair_columns(dataset, "
            '{"system": %r, "prompt": "prompt"}) for pairs.',
            unread[0],
            unread[0],
        )


def get_answers(value: Any) -> Any:
    """The answers of a column, which holds one, a text or messages, or a list of them."""
    is_list = isinstance(value, list) and (not value or isinstance(value[0], str | list))
    return value if is_list else [value]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _as_messages(value: Any, role: str) -> list[Any]:
    return [*value] if _is_messages(value) else [{"role": role, "content": value}]


def _get_content(message: Message) -> tuple[Any, Any]:
    return message.get("role"), message.get("content")
