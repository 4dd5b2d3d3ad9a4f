"""Write one page of the API reference per part of the package, from its public names."""

import ast
from collections import defaultdict
from pathlib import Path

import mkdocs_gen_files

PACKAGE = Path(__file__).resolve().parents[2] / "sense_trl"

parts: dict[str, list[str]] = defaultdict(list)
for node in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            if not alias.name.startswith("_"):
                parts[node.module.split(".")[0]].append(f"sense_trl.{node.module}.{alias.name}")

for part, names in sorted(parts.items()):
    with mkdocs_gen_files.open(f"reference/{part}.md", "w") as page:
        page.write(f"# sense_trl.{part}\n\n")
        page.writelines(f"::: {name}\n\n" for name in sorted(names))
