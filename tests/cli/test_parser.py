"""Flags made of dataclasses, and dataclasses made of flags."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sense_trl
from sense_trl.cli.main import COMMANDS
from sense_trl.cli.parser import OptionParser, build_options, get_class
from sense_trl.cli.stages import STAGES
from sense_trl.errors import InputError
from sense_trl.options import option


@dataclass(kw_only=True)
class Options:
    file: str = option("One 100 % file.", positional=True)
    num_rows: int = option("Rows.", aliases=["--rows"])
    share: float | None = option("Share.", default=None)
    style: Literal["a", "b"] | None = option("Style.", default=None)
    names: tuple[str, ...] = option("Names.", default=("x",))
    fast_mode: bool = option("Fast.", default=False)
    spread_out: bool = option("Spread.", default=True)


def _parse(*arguments: str) -> Options:
    given_ = vars(OptionParser((Options,)).parse_args([*arguments]))
    return build_options(Options, given_)


def test_every_kind_of_field_is_read() -> None:
    found = _parse(
        *("f.txt", "--num_rows", "3", "--share", "0.5", "--style", "b", "--names", "a", "b"),
        *("--names", "c", "--fast_mode"),
    )
    expected = Options(
        file="f.txt", num_rows=3, share=0.5, style="b", names=("a", "b", "c"), fast_mode=True
    )
    assert found == expected
    assert _parse("f", "--rows", "3") == Options(file="f", num_rows=3)


@settings(max_examples=20)
@given(
    st.sampled_from(["--num_rows=3", "--num-rows=3"]),
    st.sampled_from(["--fast_mode", "--fast-mode=yes", "--fast-mode True", "--fast_mode true"]),
    st.sampled_from(["--spread_out false", "--spread-out=no", "--no-spread-out", "--spread=no"]),
    st.permutations(range(4)),
)
def test_the_spelling_and_the_order_do_not_matter(
    rows: str, fast: str, spread: str, order: list[int]
) -> None:
    parts = [rows.split(), fast.split(), spread.split(), ["a-b.txt"]]
    if spread == "--spread=no":
        parts[2] = ["--spread_out=no"]
    found = _parse(*(word for index in order for word in parts[index]))
    assert found == Options(file="a-b.txt", num_rows=3, fast_mode=True, spread_out=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_rows": 1.5}, "`num_rows` is 1.5 .*expected a whole number"),
        ({"num_rows": True}, "`num_rows` is True"),
        ({"share": "many"}, "`share` is 'many' .*expected a number"),
        ({"share": [0.1]}, r"`share` is \[0.1\]"),
    ],
)
def test_values_of_another_type_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_options(Options, {"file": "f", "num_rows": 1, **values})


def test_what_a_file_says_is_taken() -> None:
    values = {"share": "1e-2", "names": "one", "num_rows": 2}
    found = build_options(Options, {"file": "f", **values})
    assert (found.share, found.names) == (0.01, ("one",))


def test_the_help_shows_one_spelling_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("--help")
    printed = capsys.readouterr().out
    assert "--num_rows NUM_ROWS" in printed and "One 100 % file." in printed
    assert "(default: True)" in printed and "(default: x)" in printed
    assert not {"--num-rows", "--rows ", "--no_spread_out", "(default: False)"} & {*printed.split()}


def test_what_takes_long_to_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "sense_trl.cli.parser.importlib.import_module",
        lambda name: asked.append(name) or __import__,
    )
    OptionParser(("somewhere:Options",))
    assert not asked
    assert get_class(Options) is Options


def _all_options() -> list[tuple[str, Any]]:
    found = []
    for command in COMMANDS.values():
        for part in command.actions or (command,):
            for kind in map(get_class, part.options):
                found += [(kind.__name__, option) for option in fields(kind)]
    for stage in STAGES:
        for kind in map(get_class, stage.options):
            if kind.__module__.startswith("sense_trl") and not stage.needs_trl:
                found += [(kind.__name__, option) for option in fields(kind)]
    return found


def test_every_option_is_described_once() -> None:
    described: dict[str, set[str]] = {}
    for kind, found in _all_options():
        text = found.metadata["help"]
        # A name keeps its case.
        assert text[0].isupper() or "." in text.split()[0] or text.startswith("cDPO"), text
        assert text.endswith("."), (kind, found.name)
        described.setdefault(text, set()).add(found.name)
    assert not {text: names for text, names in described.items() if len(names) > 1}


def _read_descriptions(tree: ast.Module) -> list[str]:
    return [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "option"
    ]


def test_no_text_describes_two_options_and_flags_come_out_of_dataclasses_alone() -> None:
    texts: list[str] = []
    for path in Path(sense_trl.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts += _read_descriptions(tree)
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "add_argument" not in called or path.name in ("parser.py", "main.py"), path
        if path.name != "options.py":
            assert not re.search(r"metadata=\{\s*\"help\"", path.read_text(encoding="utf-8")), path
    assert len(texts) > 150
    assert not {text for text, number in Counter(texts).items() if number > 1}
