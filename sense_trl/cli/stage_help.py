"""`format_stage_help`: the options of a stage that recipes set, printed without importing TRL.

The parser of a stage has every option of TRL's configuration, some hundreds, and takes seconds to
import; most of them nobody sets.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Final

from sense_trl.cli.recipes import load_recipes
from sense_trl.cli.source import Option, read_options

_WIDTH: Final = 100
_INDENT: Final = 30
# The other options of TRL and transformers that are set often, beside those that a recipe sets.
_OFTEN_SET: Final = ("max_steps", "save_strategy")
_END_OF_SENTENCE: Final = re.compile(r"(?<=\.) +(?=[A-Z'`])")


def get_shown_options(stage: str, kinds: Sequence[str]) -> dict[str, Option]:
    """The options of a stage that its short help lists: all of ours, and those that recipes set.

    Args:
        stage: its name.
        kinds: its dataclasses, as `MODULE:CLASS`.
    """
    import yaml  # type: ignore[import-untyped]

    shown = {*_OFTEN_SET}
    for recipe in load_recipes().values():
        for file in recipe.files:
            if file.stem == stage:
                shown |= yaml.safe_load(file.read_text(encoding="utf-8")).keys()
    options: dict[str, Option] = {}
    for kind in kinds:
        for name, option in read_options(kind).items():
            if name in shown or option.is_ours:
                options.setdefault(name, option)
    return options


def format_stage_help(
    stage: str, purpose: str, kinds: Sequence[str], usage: Sequence[str] = ()
) -> str:
    """The short help of a stage.

    Args:
        stage: name of the stage.
        purpose: one line that says what it does.
        kinds: its dataclasses, as `MODULE:CLASS`.
        usage: other command lines that it takes.
    """
    text = (
        f"{purpose[0].upper()}{purpose[1:]}. The options stand in a YAML file, as FILE or as "
        f"RECIPE/{stage} of the recipes in the package (`sense-trl recipes` lists them); a flag "
        "given here wins over it."
    )
    lines = [
        f"usage: sense-trl {stage} --config FILE_OR_RECIPE [--option VALUE ...]",
        *(f"       sense-trl {line}" for line in usage),
        "",
        *textwrap.wrap(text, _WIDTH),
    ]
    options = get_shown_options(stage, kinds)
    groups: dict[str, list[str]] = {}
    for name, option in options.items():
        title = option.title if option.is_ours else "Of TRL and transformers."
        groups.setdefault(title, []).extend(_format_option(name, option))
    for title, group in groups.items():
        lines += ["", *textwrap.wrap(title, _WIDTH), *group]
    lines += [
        "",
        f"All options, those of the libraries too, in full: sense-trl {stage} --config --help_all",
    ]
    return "\n".join(lines)


def _format_option(name: str, option: Option) -> list[str]:
    """The flag and the first sentence about it."""
    text = _END_OF_SENTENCE.split(option.help)[0].removesuffix(".")
    first, *more = textwrap.wrap(text, _WIDTH - _INDENT) or [""]
    flag = f"  {name.upper()}" if option.is_positional else f"  --{name}"
    fits = len(flag) < _INDENT
    lines = [f"{flag:<{_INDENT - 1}} {first}"] if fits else [flag]
    return lines + [" " * _INDENT + part for part in (more if fits else [first, *more])]
