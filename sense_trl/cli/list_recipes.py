"""`sense-trl recipes`: list, print and copy the recipes that come with the package."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sense_trl.cli.parser import Command
from sense_trl.cli.recipes import Recipe, load_recipes
from sense_trl.errors import InputError
from sense_trl.options import option


@dataclass(kw_only=True)
class RecipesOptions:
    """Options of `recipes`: a recipe, and the folder to copy it to."""

    name: str | None = option("A recipe.", default=None, positional=True, metavar="NAME")
    copy: str | None = option(
        "Copy the YAML files of NAME there, for editing.", default=None, metavar="DIR"
    )


def run(options: RecipesOptions, console: Any) -> None:
    """Run the command."""
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
