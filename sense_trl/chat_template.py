"""Chat templates: whether one can hold a prompt, and prompts for those without a system role."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sense_trl.errors import InputError, ModelError

_SEPARATOR: Final = "\n\n"

# In front of a template. The line's end behind it is not written, as everywhere behind a block.
_FOLD: Final = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- if messages[1:] and messages[1]['role'] == 'user' -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + \
messages[1]['content']}] + messages[2:] -%}
{%- else -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content']}] + messages[1:] -%}
{%- endif -%}
{%- endif %}
"""

_REMEDY: Final = (
    "Use another instruction-tuned model, or change `chat_template` (chat_template.jinja or "
    "tokenizer_config.json)"
)


def fold_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages with the system's text in front of the user's, and no system message.

    Example:
        >>> fold_messages([{"role": "system", "content": "t(a)"}, {"role": "user", "content": "?"}])
        [{'role': 'user', 'content': 't(a)\\n\\n?'}]
    """
    if not messages or messages[0]["role"] != "system":
        return [dict(message) for message in messages]
    text, rest = messages[0]["content"], [dict(message) for message in messages[1:]]
    if rest and rest[0]["role"] == "user":
        text, rest = text + _SEPARATOR + rest[0]["content"], rest[1:]
    return [{"role": "user", "content": text}, *rest]


def fold_system_message(template: Any) -> Any:
    """A chat template that writes what the given one writes of the folded messages.

    A tokenizer that is saved with it folds wherever it is used. See `fold_messages`.

    Args:
        template: a template, several by name, or None; folded ones are returned as they are.
    """
    if isinstance(template, dict):
        return {name: fold_system_message(part) for name, part in template.items()}
    if template is None or template.startswith(_FOLD):
        return template
    return _FOLD + template


def require_chat_template(tokenizer: Any, name: str | None = None) -> None:
    """Refuse a tokenizer without a chat template.

    Args:
        tokenizer: which may have one.
        name: of the model, for the message; the folder of the tokenizer if not given.

    Raises:
        ModelError: it has none.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        name = name or getattr(tokenizer, "name_or_path", None) or "the model"
        raise ModelError(
            f"The tokenizer of {name!r} has no chat template, so a prompt cannot be formatted. Use "
            "an instruction-tuned model, or set `chat_template` in tokenizer_config.json."
        )


def check_chat_template(tokenizer: Any, name: str, *, has_system: bool = True) -> None:
    """Refuse a tokenizer that cannot format a system and a user message.

    Args:
        tokenizer: with a `chat_template`.
        name: of the model, for messages.
        has_system: whether there is going to be a system message.

    Raises:
        ModelError: it has no chat template, or one that fails, refuses or drops a message.
    """
    require_chat_template(tokenizer, name)
    system = {"role": "system", "content": "schema"}
    user = {"role": "user", "content": "question"}
    messages = [system, user] if has_system else [user]
    try:
        rendered = _render(tokenizer, messages)
    # A template is a program of its own, and may raise anything.
    except Exception as error:
        if has_system and _can_render(tokenizer, [user]):
            raise ModelError(
                f"The chat template of {name!r} refuses the system message, which holds the schema "
                f"({_first_line(error)}). {_REMEDY} to put it in front of the user's: "
                "`fold_system_message` does that."
            ) from error
        raise ModelError(
            f"The chat template of {name!r} cannot be used ({_first_line(error)}). {_REMEDY}."
        ) from error
    if any(message["content"] not in rendered for message in messages):
        named = "the system or the user message: both" if has_system else "the user message: it"
        raise ModelError(
            f"The chat template of {name!r} leaves out {named} gave {rendered[:200]!r}. {_REMEDY} "
            "to write both. For one without a system role, `fold_system_message` puts the system's "
            "text in front of the user's."
        )


@contextlib.contextmanager
def naming_template_errors(what: str) -> Iterator[None]:
    """Says what a chat template refused, where it raises an error of its own.

    Args:
        what: the conversations, for the message.

    Raises:
        InputError: the template refused them.
    """
    import jinja2

    try:
        yield
    except jinja2.TemplateError as error:
        raise InputError(
            f"The chat template refuses a conversation of {what} ({_first_line(error)}). Most take "
            "the user's and the assistant's messages in turn, and some no system message: "
            "`fold_system_message` puts its text in front of the user's."
        ) from error


def _can_render(tokenizer: Any, messages: list[dict[str, str]]) -> bool:
    try:
        return bool(_render(tokenizer, messages))
    except Exception:
        return False


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
