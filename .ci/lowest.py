"""Prints the lowest version of each library that pyproject.toml allows, as pip's constraints.

Without torch: the builds of old versions for CPUs are on no package index.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
lists = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in sorted({text for texts in lists for text in texts}):
    found = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<\d+)?$", requirement)
    if found is None:
        sys.exit(f"pyproject.toml: `{requirement}` must say its lowest version, as `name>=1.2`")
    if found[1] != "torch":
        sys.stdout.write(f"{found[1]}=={found[2]}\n")
