"""`sense-trl completion`: the commands and their flags for a shell to complete."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from sense_trl.cli.parser import Command, get_class
from sense_trl.cli.recipes import load_recipes
from sense_trl.cli.stage_help import read_options
from sense_trl.cli.stages import STAGES
from sense_trl.options import option

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

    shell: Literal["bash", "zsh", "fish"] = option("Which shell reads the script.", positional=True)


def make_command(commands: Mapping[str, Command]) -> Command:
    """The command, for these and itself."""
    return Command(
        "completion",
        "print a script with which a shell completes commands and flags",
        functools.partial(_run, commands),
        (CompletionOptions,),
        description="Print a script with which a shell completes the commands and flags of "
        "sense-trl, those of the training stages included.",
        epilog=_INSTALL,
    )


def _run(commands: Mapping[str, Command], options: CompletionOptions, console: Any) -> None:
    words = get_words(commands)
    if options.shell == "fish":
        script = _format_fish(words)
    else:
        script = (_ZSH if options.shell == "zsh" else "") + _format_bash(words)
    print(script, end="")  # noqa: T201 - the result of the command


def get_words(commands: Mapping[str, Command]) -> dict[str, list[str]]:
    """Commands, with the flags and the actions of each, sorted."""
    words = {name: _collect(command) for name, command in commands.items()}
    for stage in STAGES:
        # --config is read before the flags are.
        found = words.setdefault(stage.name, {"--help"})
        found |= {"--config", "--help_all"}
        found |= {f"--{name}" for kind in stage.all_options for name in read_options(kind)}
    for recipe in load_recipes().values():
        words["recipes"].add(recipe.name)
        for name in words.keys() & set(recipe.stages):
            words[name].add(f"{recipe.name}/{name}")
    return {name: sorted(found) for name, found in sorted(words.items())}


def _collect(command: Command) -> set[str]:
    """The flags of a command and of its actions, and the names of these."""
    words = {"--help"}
    for kind in map(get_class, command.options):
        words |= {f"--{f.name}" for f in fields(kind) if not f.metadata.get("positional")}
    return words.union(*({action.name} | _collect(action) for action in command.actions))


def _format_bash(words: dict[str, list[str]]) -> str:
    cases = [f'            {name}) words="{" ".join(found)}" ;;' for name, found in words.items()]
    return _BASH.format(commands=" ".join(words), cases="\n".join(cases))


def _format_fish(words: dict[str, list[str]]) -> str:
    lines = [f"complete -c sense-trl -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for name, found in words.items():
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c sense-trl {condition} -a '{' '.join(found)}'")
    return "\n".join(lines) + "\n"
