"""Adds the recipes to what is built; everything else stands in pyproject.toml.

They lie beside the package and are installed inside it, as `sense_trl/data/recipes`, so that there
is one copy of them.
"""

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


setup(cmdclass={"build_py": BuildWithRecipes})
