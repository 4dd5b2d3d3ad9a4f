"""`read_options`: the fields of a dataclass with their help, out of its source.

TRL's configurations have some hundreds of options and take seconds to import; what a shell
completes and what a short help prints needs their names and descriptions only.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Option(NamedTuple):
    """A field of a dataclass.

    Attributes:
        help: its description; empty where that is not written out as text.
        title: first line about the dataclass that declares it.
        is_ours: whether that is one of this package.
        is_positional: whether it has no flag.
    """

    help: str
    title: str
    is_ours: bool
    is_positional: bool


@functools.cache
def read_options(kind: str) -> dict[str, Option]:
    """The fields of a dataclass by name, those of its bases first.

    Args:
        kind: `MODULE:CLASS`. Nothing is imported.
    """
    found = _find_class(*kind.split(":"))
    if found is None:
        return {}
    module, node = found
    title = (ast.get_docstring(node) or "").strip().partition("\n")[0]
    options: dict[str, Option] = {}
    # Of two bases that have a field the first one's counts, as in Python.
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            options |= read_options(f"{module}:{base.id}")
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_field = "ClassVar" not in ast.unparse(statement.annotation)
            if is_field and statement.target.id != "_":
                text, is_positional = _read_metadata(module, statement.value)
                options[statement.target.id] = Option(
                    text, title, module.startswith("sense_trl"), is_positional
                )
    return options


def _read_metadata(module: str, value: ast.expr | None) -> tuple[str, bool]:
    """The description of a field, and whether it is positional."""
    if not isinstance(value, ast.Call):
        return "", False
    if isinstance(value.func, ast.Name) and value.func.id == "option_of":
        kind, name = value.args
        assert isinstance(kind, ast.Name) and isinstance(name, ast.Constant)
        known = read_options(f"{module}:{kind.id}")[str(name.value)]
        notes = [ast.literal_eval(k.value) for k in value.keywords if k.arg == "note"]
        return " ".join([known.help, *notes]), known.is_positional
    for keyword in value.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
            found = {key.value: node for key, node in pairs if isinstance(key, ast.Constant)}
            return _read_text(found.get("help")), "positional" in found
    return "", False


def _read_text(node: ast.expr | None) -> str:
    try:
        return "" if node is None else str(ast.literal_eval(node))
    except ValueError:
        return ""


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class, and the module that defines it; imports of its name are followed."""
    for node in _walk(_read_module(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _find_class(_resolve(module, node), alias.name)
    return None


def _walk(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, those under an `if` too: imports for type checkers are there."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.If):
            yield from node.body


def _resolve(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    parts = module.split(".")
    is_package = _get_path(module).name == "__init__.py"
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


@functools.cache
def _read_module(module: str) -> ast.Module:
    return ast.parse(_get_path(module).read_text(encoding="utf-8"))


@functools.cache
def _get_path(module: str) -> Path:
    # Finding the first part imports nothing, that of an inner one would import what is around it.
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    path = Path(spec.origin).parent.joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
