"""`format_stage_help`: the options of a stage that recipes set, printed without importing TRL.

The parser of a stage has every option of TRL's configuration, some hundreds, and takes seconds to
import; most of them nobody sets. Names and descriptions are read out of the source instead, which
is what a shell needs to complete them, too.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sense_trl.cli.recipes import load_recipes


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
    if isinstance(value.func, ast.Name) and value.func.id == "option":
        return _read_text(value.args[0]), any(k.arg == "positional" for k in value.keywords)
    for keyword in value.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
            found = {key.value: node for key, node in pairs if isinstance(key, ast.Constant)}
            return _read_text(found.get("help")), False
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


_WIDTH: Final = 100
_INDENT: Final = 30
# The other options of TRL and transformers that are set often, beside those that a recipe sets.
_OFTEN_SET: Final = ("max_steps", "save_strategy")
_END_OF_SENTENCE: Final = re.compile(r"(?<=\.) +(?=[A-Z'`])")


def get_shown_options(stage: str, kinds: Sequence[str]) -> dict[str, Option]:
    """The options of a stage that its short help lists: all of ours, and those that recipes set.

    Args:
        stage: its name.
        kinds: its dataclasses, as `MODULE:CLASS`.
    """
    import yaml  # type: ignore[import-untyped]

    shown = {*_OFTEN_SET}
    for recipe in load_recipes().values():
        for file in recipe.files:
            if file.stem == stage:
                shown |= yaml.safe_load(file.read_text(encoding="utf-8")).keys()
    options: dict[str, Option] = {}
    for kind in kinds:
        for name, option in read_options(kind).items():
            if name in shown or option.is_ours:
                options.setdefault(name, option)
    return options


def format_stage_help(
    stage: str, purpose: str, kinds: Sequence[str], usage: Sequence[str] = ()
) -> str:
    """The short help of a stage.

    Args:
        stage: name of the stage.
        purpose: one line that says what it does.
        kinds: its dataclasses, as `MODULE:CLASS`.
        usage: other command lines that it takes.
    """
    text = (
        f"{purpose[0].upper()}{purpose[1:]}. The options stand in a YAML file, as FILE or as "
        f"RECIPE/{stage} of the recipes in the package (`sense-trl recipes` lists them); a flag "
        "given here wins over it."
    )
    lines = [
        f"usage: sense-trl {stage} --config FILE_OR_RECIPE [--option VALUE ...]",
        *(f"       sense-trl {line}" for line in usage),
        "",
        *textwrap.wrap(text, _WIDTH),
    ]
    options = get_shown_options(stage, kinds)
    groups: dict[str, list[str]] = {}
    for name, option in options.items():
        title = option.title if option.is_ours else "Of TRL and transformers."
        groups.setdefault(title, []).extend(_format_option(name, option))
    for title, group in groups.items():
        lines += ["", *textwrap.wrap(title, _WIDTH), *group]
    lines += [
        "",
        f"All options, those of the libraries too, in full: sense-trl {stage} --config --help_all",
    ]
    return "\n".join(lines)


def _format_option(name: str, option: Option) -> list[str]:
    """The flag and the first sentence about it."""
    text = _END_OF_SENTENCE.split(option.help)[0].removesuffix(".")
    first, *more = textwrap.wrap(text, _WIDTH - _INDENT) or [""]
    flag = f"  {name.upper()}" if option.is_positional else f"  --{name}"
    fits = len(flag) < _INDENT
    lines = [f"{flag:<{_INDENT - 1}} {first}"] if fits else [flag]
    return lines + [" " * _INDENT + part for part in (more if fits else [first, *more])]
