"""Commands of `sense-trl` that a page prints, and whether they are understood as they stand."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from sense_trl.cli import stages
from sense_trl.cli.main import make_parser
from sense_trl.cli.recipes import resolve_config
from sense_trl.cli.stage import resolve_accelerate_config, split_config_flag

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "recipes/train_sft.py": stages.SFT,
    "recipes/train_dpo.py": stages.DPO,
    "recipes/train_kid.py": stages.KD,
    "recipes/train_grpo.py": stages.GRPO,
    "recipes/build_pairs.py": stages.PAIRS,
    "recipes/evaluate.py": stages.EVALUATE,
}


def get_commands(page: Path) -> list[str]:
    """The lines of a page's ```bash and ```sh blocks, without comments; a continued line is one.

    The environment that the page has made, `.venv/bin/`, is left out.
    """
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [" ".join(line.split()).removeprefix(".venv/bin/") for line in lines]
    return [line for line in lines if line.split("#")[0].strip()]


def check_command(command: str) -> None:
    """Parse a command line of `sense-trl`, or of a script of the recipes, without running it.

    Raises:
        AssertionError, InputError, SystemExit: a part of it is unknown.
    """
    program, *arguments = shlex.split(command, comments=True)
    if program == "sense-trl":
        found = stages.find_stage(arguments)
        if found is None:
            make_parser().parse_args(arguments)
            return
        stage, arguments = found
    else:
        assert program in ("accelerate", "python")
        arguments = arguments[1:] if program == "accelerate" else arguments
        if arguments[0] not in SCRIPTS:
            _load_parser(ROOT / arguments[0]).parse_args(arguments[1:])
            return
        stage, arguments = SCRIPTS[arguments[0]], arguments[1:]
    arguments = split_config_flag(arguments)
    if "--config" in arguments or stage.needs_trl:
        assert resolve_config(arguments[arguments.index("--config") + 1]).is_file()
    # Without a GPU transformers refuses what recipes for GPUs say.
    cpu = ["--use_cpu", "true"] if stage.name in ("sft", "dpo", "kd", "grpo") else []
    *_, launch = stage.make_parser().parse_args_and_config([*arguments, *cpu])
    if launch.accelerate_config != "none":
        assert resolve_accelerate_config(launch.accelerate_config).is_file()


def _load_parser(script: Path) -> Any:
    """What the function `make_parser` of a script gives; the script may import its neighbours."""
    sys.path.insert(0, str(script.parent))
    try:
        return runpy.run_path(str(script))["make_parser"]()
    finally:
        sys.path.remove(str(script.parent))
