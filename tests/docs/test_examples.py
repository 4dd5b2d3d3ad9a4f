"""The pages in `docs`, and README.md: their examples run, their commands parse, their tables and links are true."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tiny_models
import yaml
from printed_commands import check_command, get_commands

import sense_trl
from sense_trl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ALL_PAGES = [ROOT / "README.md", *PAGES]

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def _name(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


@dataclass(frozen=True)
class Example:
    """A ```python block.

    Attributes:
        code: its text, with its place on the page as line numbers.
        runs: whether it can run here; `<!-- not run: REASON -->` stands above one that cannot.
        output: the ```text block behind it, which is what it prints; None if there is none.
    """

    code: str
    runs: bool
    output: str | None


_EXAMPLE = re.compile(
    r"(?P<not_run><!-- not run: [^>]+ -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```)?",
    re.DOTALL | re.MULTILINE,
)
# What the tiny models stand in for: two of one family, so that one can teach the other.
_MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct")


def _get_examples(page: Path) -> Iterator[Example]:
    text = page.read_text(encoding="utf-8")
    for match in _EXAMPLE.finditer(text):
        lines_before = text.count("\n", 0, match.start("code"))
        yield Example(
            "\n" * lines_before + match["code"], match["not_run"] is None, match["output"]
        )


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        name: tiny_models.save_tiny_model(tmp_path_factory.mktemp("model"), "llama", seed=seed)
        for seed, name in enumerate(_MODELS)
    }


def test_all_python_blocks_are_found() -> None:
    for page in PAGES:
        num_blocks = page.read_text(encoding="utf-8").count("```python")
        assert len(list(_get_examples(page))) == num_blocks, page.name


@pytest.mark.parametrize("page", [page for page in PAGES if any(_get_examples(page))], ids=_name)
def test_the_examples_of_a_page_run_in_their_order(
    page: Path, model_paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Pickling a class, as a checkpoint of its configuration does, looks its module up.
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for example in _get_examples(page):
        code = example.code
        for name, path in model_paths.items():
            code = code.replace(name, path)
        compiled = compile(code, str(page), "exec")
        if example.runs:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compiled, module.__dict__)
            if example.output is not None:
                assert printed.getvalue() == example.output


# Others, such as `sed`, are not ours.
_CHECKED = ("sense-trl ", "accelerate launch recipes/", "python recipes/")


def _get_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page",
    [page for page in ALL_PAGES if any(c.startswith(_CHECKED) for c in get_commands(page))],
    ids=_get_id,
)
def test_the_commands_of_a_page_parse(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in get_commands(page):
        _run_if_it_prepares(command)
        if command.startswith(_CHECKED):
            check_command(command)


def _run_if_it_prepares(command: str) -> None:
    """Copy and edit recipes, which the commands that come after read."""
    if command.startswith("sense-trl recipes "):
        # Called, not run: tests may run where the scripts of the environment are not on the path.
        assert main(shlex.split(command, comments=True)[1:]) == 0
    elif command.startswith("sed "):
        subprocess.run(command, shell=True, check=True)


def test_a_copied_recipe_is_all_about_ones_own_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in get_commands(DOCS / "own-database.md"):
        _run_if_it_prepares(command)
    files = list(tmp_path.glob("mine/*.yaml"))
    assert files
    for file in files:
        for option, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            assert "spider" not in str(value), f"{file.name}: {option}"


# --------------------------------------------------------------------------------- option tables


OPTION_TABLES = runpy.run_path(str(DOCS / "site" / "option_tables.py"))


@pytest.mark.parametrize("page", OPTION_TABLES["PAGES"])
def test_the_table_of_options_says_what_the_fields_say(page: str) -> None:
    # Run docs/site/option_tables.py to renew it.
    assert (DOCS / page).read_text(encoding="utf-8") == OPTION_TABLES["renew"](page)


def test_a_walk_through_the_code_passes_files_that_are_there_once() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8").split("\n## Four walks\n")[1]
    walks = [
        re.findall(r"^\d+\. `([\w/]+\.py)`", walk, re.MULTILINE)
        for walk in text.split("\n### ")[1:]
    ]
    assert len(walks) == 4
    for files in walks:
        assert len(files) == len(set(files)) > 6
        assert all((ROOT / "sense_trl" / file).is_file() for file in files), files


# ---------------------------------------------------------------------------------------- links


def _get_anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=_get_id)
def test_the_links_of_a_page_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in _get_anchors(target), link


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (.+)$", citation, re.MULTILINE)
    assert version == sense_trl.__version__


def test_the_pages_are_not_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    assert not any(fnmatch("docs", pattern) for pattern in patterns)
    assert "docs" not in (ROOT / "setup.py").read_text(encoding="utf-8")
