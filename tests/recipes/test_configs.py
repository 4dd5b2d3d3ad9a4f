"""Every YAML of every recipe parses into the arguments of its stage; a typo does not."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from sense_trl.cli.stage import LaunchArguments, Stage
from sense_trl.cli.stages import STAGES

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCRIPTS = {
    "sft": "train_sft.py",
    "pairs": "build_pairs.py",
    "dpo": "train_dpo.py",
    "kd": "train_kid.py",
    "grpo": "train_grpo.py",
    "evaluate": "evaluate.py",
}
CONFIGS = sorted(RECIPES.glob("*/*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def _script(stage: str) -> ModuleType:
    path = RECIPES / SCRIPTS[stage]
    spec = importlib.util.spec_from_file_location(f"recipe_{stage}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse(stage: str, path: Path) -> tuple[Any, ...]:
    # Without a GPU transformers refuses what recipes for GPUs say; nothing is run here.
    cpu = ["--use_cpu", "true"] if stage in ("sft", "dpo", "kd", "grpo") else []
    return _script(stage).make_parser().parse_args_and_config(["--config", str(path), *cpu])


def test_every_stage_has_a_script_and_a_recipe() -> None:
    assert {stage.name for stage in STAGES} == set(SCRIPTS)
    assert {path.stem for path in CONFIGS} == set(SCRIPTS)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_script_is_its_stage(stage: Stage) -> None:
    script = _script(stage.name)
    assert script.main is stage.main
    assert script.make_parser == stage.make_parser


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_config_parses_and_every_value_arrives(path: Path) -> None:
    groups = _parse(path.stem, path)
    values = yaml.safe_load(path.read_text())
    for name, value in values.items():
        if name == "use_cpu":
            continue
        owners = [group for group in groups if hasattr(group, name)]
        assert owners, name
        found = getattr(owners[0], name)
        # What transformers makes of "none", and TRL of a list of one name.
        known = {("report_to", "none"): [], ("lora_target_modules", "['all-linear']"): "all-linear"}
        value = known.get((name, str(value)), value)
        # Ours take one name for a list of it.
        if isinstance(found, list | tuple) and isinstance(value, str | list):
            found, value = [*found], [value] if isinstance(value, str) else value
        assert found == value or str(getattr(found, "value", found)) == str(value), name
    assert isinstance(groups[-1], LaunchArguments)
    assert (path.parent / "README.md").is_file()


@pytest.mark.parametrize("stage", SCRIPTS)
def test_an_unknown_key_is_refused(stage: str, tmp_path: Path) -> None:
    text = next(p for p in CONFIGS if p.stem == stage).read_text()
    typo = tmp_path / "typo.yaml"
    typo.write_text(text + "\nmax_qestions: 3\n")
    with pytest.raises(ValueError, match="max_qestions"):
        _parse(stage, typo)
