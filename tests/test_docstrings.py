"""The examples in docstrings run, and show what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import sense_trl

PACKAGE = Path(sense_trl.__file__).resolve().parent
TENSOR_HALF = ("losses", "prefix_tree", "collators", "trainers")


def _find_modules() -> list[object]:
    """Modules with examples; those that load torch are slow."""
    found: list[object] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " not in path.read_text(encoding="utf-8"):
            continue
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(("sense_trl", *parts)).removesuffix(".__init__")
        marks = [pytest.mark.slow] if parts[0] in TENSOR_HALF else []
        found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.parametrize("name", _find_modules())
def test_the_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    results = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, report=True
    )
    assert results.failed == 0
    assert results.attempted > 0, "the module has examples, but none in a docstring of its own"
