"""Every command that a recipe's README prints is understood as it stands."""

from pathlib import Path

import pytest
from printed_commands import check_command, get_commands

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

COMMANDS = [
    (readme.parent.name, command)
    for readme in sorted(ROOT.glob("recipes/**/README.md"))
    for command in get_commands(readme)
]


def test_every_recipe_prints_commands() -> None:
    folders = {path.parent.name for path in ROOT.glob("recipes/*/*.yaml")} | {"quickstart"}
    assert {folder for folder, _ in COMMANDS} == folders


@pytest.mark.parametrize(("folder", "command"), COMMANDS)
def test_a_printed_command_parses(
    folder: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command)
