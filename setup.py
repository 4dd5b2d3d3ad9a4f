"""Adds the recipes to what is built, and README.md as a package index can show it.

Everything else stands in pyproject.toml. The recipes lie beside the package and are installed
inside it, as `sense_trl/data/recipes`, so that there is one copy of them.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Not the scripts and benchmarks, which belong to a checkout.
PATTERNS = ("README.md", "*/README.md", "*/*.yaml")
RECIPES = [str(path) for pattern in PATTERNS for path in sorted(Path("recipes").glob(pattern))]


class BuildWithRecipes(build_py):
    """Copies the recipes to the modules; an editable installation reads those of its checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in RECIPES:
                target = Path(self.build_lib, "sense_trl", "data", file)
                self.mkpath(str(target.parent))
                self.copy_file(file, str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *RECIPES]


def get_description() -> str:
    """README.md with links that lead somewhere on a package index, where no other file is.

    Links to files of the checkout begin with `Source` of `[project.urls]`; while that is not
    there, only their text is left.
    """
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project.get("urls", {}).get("Source")
    target = r"\1" if source is None else rf"[\1]({source.rstrip('/')}/blob/main/\2)"
    text = Path("README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)", target, text)


setup(
    cmdclass={"build_py": BuildWithRecipes},
    long_description=get_description(),
    long_description_content_type="text/markdown",
)
