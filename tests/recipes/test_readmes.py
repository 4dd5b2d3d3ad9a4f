"""Every command that a recipe's README prints is understood as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from sense_trl.cli import stages
from sense_trl.cli.main import make_parser
from sense_trl.cli.stage import resolve_accelerate_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "recipes/train_sft.py": stages.SFT,
    "recipes/train_dpo.py": stages.DPO,
    "recipes/train_kid.py": stages.KD,
    "recipes/build_pairs.py": stages.PAIRS,
    "recipes/evaluate.py": stages.EVALUATE,
}

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def _commands() -> list[tuple[str, str]]:
    found = []
    for readme in sorted(ROOT.glob("recipes/**/README.md")):
        for block in re.findall(r"```bash\n(.*?)```", readme.read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [
                (readme.parent.name, " ".join(line.split())) for line in lines if line.strip()
            ]
    return found


COMMANDS = _commands()


def test_every_recipe_prints_commands() -> None:
    folders = {path.parent.name for path in ROOT.glob("recipes/*/*.yaml")} | {"quickstart"}
    assert {folder for folder, _ in COMMANDS} == folders


@pytest.mark.parametrize(("folder", "command"), COMMANDS)
def test_a_printed_command_parses(
    folder: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    if program == "sense-trl":
        stage = stages.find_stage(arguments)
        if stage is None:
            make_parser().parse_args(arguments)
            return
        arguments = arguments[1:]
    else:
        assert program in ("accelerate", "python")
        arguments = arguments[1:] if program == "accelerate" else arguments
        stage = SCRIPTS[arguments[0]]
        arguments = arguments[1:]
    assert arguments[0] == "--config"
    assert (ROOT / arguments[1]).is_file()
    # Without a GPU transformers refuses what recipes for GPUs say.
    cpu = ["--use_cpu", "true"] if stage.name in ("sft", "dpo", "kd") else []
    *_, launch = stage.make_parser().parse_args_and_config([*arguments, *cpu])
    if launch.accelerate_config != "none":
        assert resolve_accelerate_config(launch.accelerate_config).is_file()
