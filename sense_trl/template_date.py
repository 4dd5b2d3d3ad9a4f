"""The day that a chat template is told where it writes today's date into every prompt.

Such templates (Llama 3, gpt-oss, SmolLM3 and others) give other tokens on every day: a run that is
resumed would go on with other prompts than it began with, and what a cache holds would not be found
again. The day is fixed when a training begins.
"""

from __future__ import annotations

import inspect
from datetime import date, datetime
from typing import Any

from sense_trl.errors import InputError

_FUNCTION = "strftime_now"
"""Name that transformers gives the clock of a chat template."""

_DIRECTIVES = (
    *"aAbBcdDefFgGhHIjklmMnpPrRsSTuUVwWxXyYzZ",
    *(f"-{letter}" for letter in "deHIjmMSy"),
)


class _TemplateOnDay:
    """A tokenizer's `apply_chat_template`, with a clock that stands still.

    A template is given nothing that could be called, so the clock is a macro in front of it.
    """

    def __init__(self, tokenizer: Any, day: date) -> None:
        self.tokenizer = tokenizer
        self.day = day

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)

    @property
    def _original(self) -> Any:
        return type(self.tokenizer).apply_chat_template.__get__(self.tokenizer)

    def __call__(self, *args: Any, **options: Any) -> Any:
        bound = self.__signature__.bind(*args, **options)
        given = bound.arguments
        template = self.tokenizer.get_chat_template(given.get("chat_template"), given.get("tools"))
        given["chat_template"] = _write_clock(self.day) + template
        return self._original(*bound.args, **bound.kwargs)


def writes_date(tokenizer: Any) -> bool:
    """Whether the chat template of a tokenizer asks for today's date."""
    template = getattr(tokenizer, "chat_template", None) or ""
    texts = template.values() if isinstance(template, dict) else [template]
    return any(_FUNCTION in text for text in texts)


def fix_template_date(tokenizer: Any, day: str) -> None:
    """Have a tokenizer's chat template take a day for today, as long as the tokenizer lives.

    What is saved of the tokenizer does not change.

    Args:
        tokenizer: of transformers.
        day: as `check_template_date` takes it.

    Example:
        >>> from transformers import PreTrainedTokenizerFast
        >>> from tokenizers import Tokenizer, models
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        >>> tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
        >>> fix_template_date(tokenizer, "2026-11-29")
        >>> tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        '29 Nov 2026'
    """
    tokenizer.apply_chat_template = _TemplateOnDay(tokenizer, check_template_date(day))


def check_template_date(day: str) -> date:
    """The day that `template_date` names.

    Raises:
        InputError: it is no date.
    """
    try:
        return date.fromisoformat(day)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`template_date` is {day!r}; expected a day as year, month and day, e.g. '2026-11-29'."
        ) from error


def _write_clock(day: date) -> str:
    """A macro that writes the beginning of a day, in front of a template."""
    start = datetime(day.year, day.month, day.day)
    # A percent sign that is written as two is none that begins a directive.
    replacements = [("%%", "\0")]
    for directive in _DIRECTIVES:
        replacements.append((f"%{directive}", start.strftime(f"%{directive}")))
    replacements.append(("\0", "%"))
    chain = "".join(f"|replace({old!r}, {new!r})" for old, new in replacements)
    # The empty expression keeps a line end at the beginning of the template.
    return f"{{% macro {_FUNCTION}(format) %}}{{{{ format{chain} }}}}{{% endmacro %}}{{{{ '' }}}}"
