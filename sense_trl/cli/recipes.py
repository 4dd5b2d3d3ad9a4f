"""`sense-trl recipes`: the recipes that come with the package; and `--config RECIPE/STAGE`."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sense_trl.cli.command import Command
from sense_trl.errors import InputError

__all__ = ["COMMAND", "Recipe", "load_recipes", "resolve_config"]

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


# -------------------------------------------------------------------------------- command


@dataclass(kw_only=True)
class RecipesOptions:
    """Which recipe, and what becomes of its files."""

    name: str | None = field(
        default=None, metadata={"help": "A recipe.", "positional": True, "metavar": "NAME"}
    )
    copy: str | None = field(
        default=None,
        metadata={"help": "Copy the YAML files of NAME there, for editing.", "metavar": "DIR"},
    )


def run(options: RecipesOptions, console: Any) -> int:
    """Run the command.

    Returns:
        0.

    Raises:
        InputError: there is no such recipe, or the folder has such files.
    """
    recipes = load_recipes()
    name, copy = options.name, options.copy
    if name is None and copy is not None:
        raise InputError(f"`name` is missing; expected one of {', '.join(recipes)} to copy.")
    if name is None:
        text = _format_list(list(recipes.values()))
    elif name not in recipes:
        raise InputError(f"`name` is {name!r}; expected one of {', '.join(recipes)}.")
    elif copy is None:
        text = _format_files(recipes[name])
    else:
        text = _copy(recipes[name], Path(copy))
    print(text)  # noqa: T201 - the result of the command
    return 0


def _format_list(recipes: list[Recipe]) -> str:
    names = max(len(recipe.name) for recipe in recipes)
    machines = max(len(recipe.machine) for recipe in recipes)
    return "\n".join(
        f"{recipe.name:<{names}}  {recipe.machine:<{machines}}  {', '.join(recipe.stages)}"
        for recipe in recipes
    )


def _format_files(recipe: Recipe) -> str:
    """The files one after the other, each under its name."""
    texts = [
        f"# {recipe.name}/{file.name}\n{file.read_text(encoding='utf-8')}" for file in recipe.files
    ]
    return "\n".join(texts).rstrip()


def _copy(recipe: Recipe, folder: Path) -> str:
    targets = [folder / file.name for file in recipe.files]
    if present := [str(target) for target in targets if target.exists()]:
        raise InputError(
            f"`copy` is {str(folder)!r}, which has {', '.join(present)} already; expected a folder "
            "without them. Name another one."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, target in zip(recipe.files, targets, strict=True):
            shutil.copyfile(file, target)
    except OSError as error:
        raise InputError(f"`copy` {str(folder)!r} cannot be written: {error}.") from error
    return "\n".join(str(target) for target in targets)


COMMAND: Final = Command(
    "recipes",
    "the recipes of this package; print or copy their YAML files",
    run,
    (RecipesOptions,),
    description="List the recipes that come with this package, the machine that each is made for, "
    "and its stages; with NAME, print the YAML files of one. A stage runs as `sense-trl STAGE "
    "--config NAME/STAGE`, and any flag given there wins over the file.",
)
