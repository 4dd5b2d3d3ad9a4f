"""The short help of a stage: true, complete for our recipes, and there at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models  # noqa: F401 - offline
import yaml

from sense_trl.cli import stages
from sense_trl.cli.main import EXIT_OK, main
from sense_trl.cli.parser import get_class
from sense_trl.cli.stage_help import get_shown_options, read_options

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("stage", stages.STAGES, ids=lambda stage: stage.name)
def test_a_stage_has_every_option_that_its_help_describes(stage: stages.Stage) -> None:
    for kind in stage.all_options:
        fields = dataclasses.fields(get_class(kind))
        found = read_options(kind)
        assert {field.name for field in fields} == found.keys()
        # TRL computes some descriptions; all of ours are written out.
        for field in fields:
            if field.name in get_shown_options(stage.name, stage.all_options):
                assert found[field.name].help == field.metadata["help"]


@pytest.mark.parametrize("stage", stages.STAGES, ids=lambda stage: stage.name)
def test_the_help_describes_every_option_that_a_recipe_sets(stage: stages.Stage) -> None:
    files = sorted(RECIPES.glob(f"*/{stage.name}*.yaml"))
    assert len(files) > 5
    for file in files:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert options.keys() <= get_shown_options(stage.name, stage.all_options).keys(), file


@pytest.mark.parametrize(
    "arguments",
    [["sft", "--help"], ["dpo", "-h"], ["kd", "--config", "x", "--help"]]
    + [[name, "--config", "--help"] for name in ("pairs", "evaluate")],
    ids=lambda arguments: arguments[0],
)
def test_the_short_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from sense_trl.cli.main import main; "
        f"assert main({arguments!r}) == 0; "
        "assert not {'torch', 'trl', 'transformers', 'sqlglot'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"usage: sense-trl {arguments[0]} --config" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    (stage,) = (stage for stage in stages.STAGES if stage.name == arguments[0])
    for name, option in get_shown_options(stage.name, stage.all_options).items():
        assert f"  {name.upper() if option.is_positional else '--' + name}" in done.stdout


def test_the_full_help_has_the_options_of_the_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["dpo", "--help_all"]) == EXIT_OK
    printed = capsys.readouterr().out
    assert "--adam_beta2" in printed
    assert "--dpop_lambda" in printed


def test_the_help_names_every_divergence() -> None:
    from sense_trl.losses.divergence import DIVERGENCES

    text = read_options("sense_trl.trainers:KIDConfig")["kd_loss_type"].help
    assert all(f" {name}" in text for name in DIVERGENCES)
