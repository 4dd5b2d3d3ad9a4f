"""`sense-trl recipes`, and `--config RECIPE/STAGE` where no such file is on the disk."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models  # noqa: F401 - offline
import yaml

from sense_trl.cli import recipes
from sense_trl.cli.main import main
from sense_trl.cli.recipes import load_recipes, resolve_config
from sense_trl.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPE = "qwen2.5-coder-7b-16gb"

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_folder_of_yaml_files_is_a_recipe_with_a_machine() -> None:
    found = load_recipes()
    assert set(found) == {path.parent.name for path in FOLDER.glob("*/*.yaml")}
    assert found[RECIPE].machine == "one GPU with 16 GB"
    assert found[RECIPE].stages == ["sft", "pairs", "dpo", "evaluate", "grpo"]
    assert next(iter(found)).startswith("spider")


def test_the_list_has_a_line_per_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(load_recipes())
    (line,) = [line for line in lines if line.startswith(f"{RECIPE} ")]
    assert re.split(" {2,}", line) == [
        RECIPE,
        "one GPU with 16 GB",
        "sft, pairs, dpo, evaluate, grpo",
    ]


def test_the_files_of_one_are_printed_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", RECIPE]) == 0
    printed = capsys.readouterr().out
    sft = (FOLDER / RECIPE / "sft.yaml").read_text()
    assert printed.startswith(f"# {RECIPE}/sft.yaml\n{sft}\n# {RECIPE}/pairs.yaml\n")
    assert main(["recipes", RECIPE, "--copy", "mine"]) == 0
    assert capsys.readouterr().out.split() == [
        str(Path("mine") / f"{stage}.yaml") for stage in ("sft", "pairs", "dpo", "evaluate", "grpo")
    ]
    assert Path("mine/sft.yaml").read_text() == sft


def test_what_was_edited_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/dpo.yaml").write_text("beta: 0.3\n")
    assert main(["recipes", RECIPE, "--copy", "mine"]) == 2
    assert "mine/dpo.yaml already" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["dpo.yaml"]
    assert Path("mine/dpo.yaml").read_text() == "beta: 0.3\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], f"`name` is 'nope'; expected one of .*{RECIPE}"),
        (["--copy", "mine"], "`name` is missing"),
        ([RECIPE, "--copy", "mine/file/below"], "`copy` 'mine/file/below' cannot be written"),
    ],
)
def test_unusable_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/file").write_text("")
    assert main(["recipes", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "config", [f"{RECIPE}/dpo", f"{RECIPE}/dpo.yaml", f"recipes/{RECIPE}/dpo.yaml"]
)
def test_a_recipe_is_found_by_its_name_and_a_file_comes_first(config: str) -> None:
    assert resolve_config(config) == FOLDER / RECIPE / "dpo.yaml"
    Path(config).parent.mkdir(parents=True)
    Path(config).write_text("beta: 0.3\n")
    assert resolve_config(config) == Path(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nope/dpo", f"`config` is 'nope/dpo', which is neither .*spider.*{RECIPE}.*"),
        (f"{RECIPE}/kd", f"of this recipe there are {RECIPE}/sft, .*{RECIPE}/evaluate"),
        (RECIPE, f"of this recipe there are {RECIPE}/sft"),
        (f"{RECIPE}/../{RECIPE}/dpo", "of this recipe there are"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(config: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_config(config)


def test_stages_and_the_estimate_take_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    from sense_trl.cli.stages import SFT

    *_, model, _ = SFT.make_parser().parse_args_and_config(
        ["--config", f"{RECIPE}/sft", "--use_cpu", "true", "--lora_r", "3"]
    )
    assert (model.model_name_or_path, model.lora_r) == ("Qwen/Qwen2.5-Coder-7B-Instruct", 3)
    # As far as the stage's model, which is not there; and no further.
    assert main(["sft", "--config=spider-smollm2/sft", "--model_name_or_path", "no/model"]) == 2
    assert "spider/database" in capsys.readouterr().err
    options = ["--set", "model_name_or_path=no/model"]
    assert main(["estimate", "--config", f"{RECIPE}/sft", *options]) == 2
    assert "no/model" in capsys.readouterr().err


def test_the_installed_package_reads_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "sense_trl" / "data" / "recipes" / "small"
    installed.mkdir(parents=True)
    (installed.parent / "README.md").write_text(
        "| recipe | machine |\n|---|---|\n| [small](small/README.md) | a laptop |\n"
    )
    (installed / "sft.yaml").write_text(yaml.safe_dump({"max_steps": 1}))
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path / "site-packages" / "sense_trl")
    assert {name: r.machine for name, r in load_recipes().items()} == {"small": "a laptop"}
    assert resolve_config("small/sft") == installed / "sft.yaml"


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['trl'] = None\n"
        "from sense_trl.cli.main import main\n"
        "sys.exit(main(['recipes']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert RECIPE in done.stdout
