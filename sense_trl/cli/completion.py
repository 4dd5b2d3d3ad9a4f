"""`sense-trl completion`: the commands and their flags for a shell to complete."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sense_trl.cli.command import Command
from sense_trl.cli.parser import OptionParser

__all__ = ["COMMAND", "get_words"]

_INSTALL: Final = """\
Once per shell, and again after an update:

  bash:  sense-trl completion bash > ~/.local/share/bash-completion/completions/sense-trl
  zsh:   sense-trl completion zsh >> ~/.zshrc
  fish:  sense-trl completion fish > ~/.config/fish/completions/sense-trl.fish
"""

# Where no word fits, the shell completes file names.
_BASH: Final = """\
_sense_trl() {{
    local words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _sense_trl sense-trl
"""
_ZSH: Final = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(kw_only=True)
class CompletionOptions:
    """For which shell."""

    shell: Literal["bash", "zsh", "fish"] = field(
        metadata={"help": "Which shell reads the script.", "positional": True}
    )


def run(options: CompletionOptions, console: Any) -> int:
    """Run the command.

    Returns:
        0.
    """
    words = get_words()
    if options.shell == "fish":
        script = _format_fish(words)
    else:
        script = (_ZSH if options.shell == "zsh" else "") + _format_bash(words)
    print(script, end="")  # noqa: T201 - the result of the command
    return 0


def get_words() -> dict[str, list[str]]:
    """Commands, with the flags and the actions of each, sorted."""
    from sense_trl.cli import stages
    from sense_trl.cli.main import make_parser
    from sense_trl.cli.recipes import load_recipes

    words = {name: _collect(parser) for name, parser in _get_commands(make_parser()).items()}
    for stage in stages.STAGES:
        # --config is read before the flags are.
        words.setdefault(stage.name, set()).update(
            _collect(stage.make_parser()), {"--config", "--help_all"}
        )
    for recipe in load_recipes().values():
        words["recipes"].add(recipe.name)
        for name in words.keys() & set(recipe.stages):
            words[name].add(f"{recipe.name}/{name}")
    return {name: sorted(found) for name, found in sorted(words.items())}


def _get_commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, command in action.choices.items()
    }


def _collect(parser: argparse.ArgumentParser) -> set[str]:
    """The long flags of a command and of its actions, and the names of these."""
    if isinstance(parser, OptionParser):
        parser.fill()
    words = {flag for action in parser._actions for flag in action.option_strings}
    words = {word for word in words if word.startswith("--")}
    for name, command in _get_commands(parser).items():
        words |= {name} | _collect(command)
    return words


def _format_bash(words: dict[str, list[str]]) -> str:
    cases = [f'            {name}) words="{" ".join(found)}" ;;' for name, found in words.items()]
    return _BASH.format(commands=" ".join(words), cases="\n".join(cases))


def _format_fish(words: dict[str, list[str]]) -> str:
    lines = [f"complete -c sense-trl -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for name, found in words.items():
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c sense-trl {condition} -a '{' '.join(found)}'")
    return "\n".join(lines) + "\n"


COMMAND: Final = Command(
    "completion",
    "print a script with which a shell completes commands and flags",
    run,
    (CompletionOptions,),
    description="Print a script with which a shell completes the commands and flags of sense-trl, "
    "those of the training stages included.",
    epilog=_INSTALL,
)
