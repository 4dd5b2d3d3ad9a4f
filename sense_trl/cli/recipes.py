"""The recipes that come with the package, and `--config RECIPE/STAGE`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sense_trl.errors import InputError

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# A row of the table in the README of the recipes: | [NAME](NAME/README.md) | MACHINE |
_TABLE_ROW: Final = re.compile(r"^\| \[(?P<name>[^\]]+)\]\([^)]+\) \| (?P<machine>.+) \|$", re.M)
_STAGE_ORDER: Final = ("sft", "pairs", "dpo", "kd", "evaluate")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A folder of YAML files.

    Attributes:
        name: of the folder.
        machine: what it is made for.
        files: one per stage, in the order in which the stages run.
    """

    name: str
    machine: str
    files: tuple[Path, ...]

    @property
    def stages(self) -> list[str]:
        """The names of the files."""
        return [file.stem for file in self.files]


def load_recipes() -> dict[str, Recipe]:
    """The recipes by name, in the order of their README."""
    folder = _PACKAGE / "data" / "recipes"
    # In a checkout they lie beside the package; building it puts them inside.
    if not folder.is_dir():
        folder = _PACKAGE.parent / "recipes"
    table = _TABLE_ROW.finditer((folder / "README.md").read_text(encoding="utf-8"))
    recipes = [
        Recipe(row["name"], row["machine"], _get_files(folder / row["name"])) for row in table
    ]
    # The quickstart is a command of its own and has no files.
    return {recipe.name: recipe for recipe in recipes if recipe.files}


def _get_files(folder: Path) -> tuple[Path, ...]:
    def get_place(file: Path) -> tuple[int, str]:
        known = file.stem in _STAGE_ORDER
        return _STAGE_ORDER.index(file.stem) if known else len(_STAGE_ORDER), file.stem

    return tuple(sorted(folder.glob("*.yaml"), key=get_place))


def resolve_config(config: str) -> Path:
    """The file that `--config` names: one on the disk, else a stage of a recipe of this package.

    Args:
        config: a path, or `RECIPE/STAGE`; `recipes/RECIPE/STAGE.yaml`, as the READMEs say, is the
            same where there is no checkout.

    Raises:
        InputError: it is neither.
    """
    path = Path(config)
    # Not `is_file`: a shell's <(COMMAND) is a pipe.
    if path.exists() and not path.is_dir():
        return path
    name, _, stage = config.removeprefix("recipes/").removesuffix(".yaml").partition("/")
    recipes = load_recipes()
    if name not in recipes:
        raise InputError(
            f"`config` is {config!r}, which is neither a file nor a stage of a recipe; expected "
            f"RECIPE/STAGE with one of {', '.join(recipes)}. `sense-trl recipes` lists their "
            "stages."
        )
    for file in recipes[name].files:
        if file.stem == stage:
            return file
    stages = ", ".join(f"{name}/{known}" for known in recipes[name].stages)
    raise InputError(f"`config` is {config!r}; of this recipe there are {stages}.")
