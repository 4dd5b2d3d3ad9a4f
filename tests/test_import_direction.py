"""Which part of the package may import which: the architecture as data."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sense_trl"

ANY = {
    "errors", "chat_template", "chat_tokens", "end_tokens", "template_date", "_closing", "_files",
    "_version", "model_traits", "options",
}  # fmt: skip
SQL_HALF = {
    "database", "sql", "questions", "schema", "prompts", "generation", "verification", "pairs",
    "rewards", "synthesis", "linking", "backends",
}  # fmt: skip
TENSOR_HALF = {"losses", "prefix_tree", "collators", "trainers"}
MODELS = {"checkpoints", "memory", "run_folder"}

MAY_IMPORT = {
    "errors": set(),
    "chat_template": set(),
    "chat_tokens": set(),
    "end_tokens": set(),
    "template_date": set(),
    "_closing": set(),
    "_files": set(),
    "_version": set(),
    "options": set(),
    "run_folder": set(),
    "model_traits": set(),
    "database": set(),
    "backends": {"database"},
    "sql": set(),
    "questions": {"sql"},
    "schema": {"database", "sql"},
    "prompts": {"database", "linking", "schema", "sql"},
    "linking": {"database", "schema", "sql"},
    "decoding": set(),
    "generation": {"prompts", "decoding"},
    "verification": {"database", "sql", "questions"},
    "pairs": {"backends", "verification", "database", "prompts", "sql", "questions", "task"},
    "rewards": {"verification", "prompts", "database", "schema", "sql", "evaluation"},
    "synthesis": {
        "backends",
        "pairs",
        "verification",
        "generation",
        "schema",
        "sql",
        "database",
        "prompts",
        "questions",
    },
    "losses": set(),
    "prefix_tree": set(),
    "collators": {"prefix_tree"},
    "trainers": {"losses", "prefix_tree", "collators", "decoding"},
    "evaluation": SQL_HALF,
    "task": {"database", "schema", "sql", "prompts", "questions", "verification"},
    "checkpoints": TENSOR_HALF | {"evaluation", "generation", "memory", "prompts", "run_folder"},
    "memory": TENSOR_HALF,
    "steps": SQL_HALF | TENSOR_HALF | MODELS | {"evaluation", "task"},
    "jobs": SQL_HALF | TENSOR_HALF | MODELS | {"evaluation", "task", "steps"},
    "cli": SQL_HALF | TENSOR_HALF | MODELS | {"evaluation", "task", "steps", "jobs"},
}


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_layers(path: Path) -> set[str]:
    layers = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [node.module] if node.module != "sense_trl" else names
        layers |= {n.split(".")[1] for n in names if n.startswith("sense_trl.")}
    return layers


FILES = sorted(
    p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or not p.stem.startswith("__")
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_layer_imports_only_what_the_table_allows(path: Path) -> None:
    layer = _layer(path)
    assert layer in MAY_IMPORT, f"{layer} is a new layer: give it a row in MAY_IMPORT"
    allowed = MAY_IMPORT[layer] | {layer} | ANY
    assert _imported_layers(path) <= allowed


def test_the_two_halves_do_not_know_each_other() -> None:
    assert not any(MAY_IMPORT[layer] & TENSOR_HALF for layer in SQL_HALF)
    assert not any(MAY_IMPORT[layer] & SQL_HALF for layer in TENSOR_HALF)


def _get_imports() -> dict[str, set[str]]:
    """The modules of the package that each module imports, by dotted path."""
    paths = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sense_trl."):
                base = (node.module or "").removeprefix("sense_trl.")
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    imports[name].add(inner if inner in modules else base)
        imports[name] &= modules.keys() - {name}
    return imports


def _find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_no_file_imports_itself_through_others() -> None:
    assert _find_circle(_get_imports()) is None


def test_no_room_imports_itself_through_others() -> None:
    imports = _get_imports()
    rooms = {
        name: name
        if (PACKAGE / name.replace(".", "/")).is_dir()
        else name.rpartition(".")[0] or name
        for name in imports
    }
    graph: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for name, imported in imports.items():
        graph[rooms[name]] |= {rooms[other] for other in imported} - {rooms[name]}
    assert _find_circle(graph) is None


def test_a_circle_is_found() -> None:
    assert set(_find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) or ()) == {"b", "c"}


def _modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "trl", "datasets", "numpy", "sqlglot", "rich", "jinja2"}
    assert not heavy & _modules_after("import sense_trl")


def test_the_sql_half_works_without_torch() -> None:
    code = "\n".join(
        f"import sense_trl.{layer}" for layer in sorted(SQL_HALF | {"evaluation", "task"})
    )
    assert not {"torch", "transformers", "trl"} & _modules_after(code)


def test_the_command_line_parser_imports_nothing_heavy() -> None:
    code = "from sense_trl.cli.main import make_parser; make_parser()"
    assert not {"torch", "transformers", "trl", "datasets", "sqlglot"} & _modules_after(code)


def test_only_what_hands_on_names_of_others_states_them() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.name == "__init__.py":
            continue
        nodes = ast.parse(file.read_text(encoding="utf-8")).body
        imported = {
            alias.asname or alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in nodes:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                assert imported & set(ast.literal_eval(node.value)), f"{file}: a leading _ says it"


def test_every_public_name_loads_and_is_known_to_type_checkers() -> None:
    import sense_trl

    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [
        alias.asname
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == sorted(sense_trl.__all__)
    assert len(imported) < 80, "what few need is imported from its module"
    for name in sense_trl.__all__:
        assert getattr(sense_trl, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        sense_trl.no_such_name  # noqa: B018
