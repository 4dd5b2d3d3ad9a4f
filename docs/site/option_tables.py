"""Write the tables of options in docs/ from the fields that describe them.

Run it when an option has changed: python docs/site/option_tables.py
"""

import json
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from trl import DPOConfig, GRPOConfig, SFTConfig

from sense_trl.options import PromptOptions
from sense_trl.trainers import KIDConfig, SenseDPOConfig, SenseGRPOConfig, SenseSFTConfig
from sense_trl.trainers.options import SenseOptions, SharingOptions
from sense_trl.trainers.teacher_options import TeacherOptions

DOCS = Path(__file__).resolve().parents[1]

# A page, the dataclass whose options its table has, and those whose options stand elsewhere.
PAGES: dict[str, tuple[type, tuple[type, ...]]] = {
    "sft-trainer.md": (SenseSFTConfig, (SFTConfig,)),
    "dpo-trainer.md": (SenseDPOConfig, (DPOConfig, SenseOptions, TeacherOptions)),
    "kid-trainer.md": (KIDConfig, (SenseSFTConfig,)),
    "grpo-trainer.md": (SenseGRPOConfig, (GRPOConfig, SharingOptions)),
    "prompts.md": (PromptOptions, ()),
}

_TABLE = re.compile(r"^\| option \| default \| what it does \|\n(?:\|.*\n)+", re.MULTILINE)


def format_table(kind: type, described_elsewhere: tuple[type, ...]) -> str:
    """The options of a dataclass, a row each, in Markdown."""
    # A field that a dataclass inherits unchanged is the same object in both.
    inherited = {id(field) for base in described_elsewhere for field in fields(base)}
    rows = ["| option | default | what it does |", "|---|---|---|"]
    for field in fields(kind):
        if id(field) not in inherited:
            text = field.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| `{field.name}` | `{_format_default(field)}` | {text} |")
    return "\n".join(rows) + "\n"


def _format_default(field: Field[Any]) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return json.dumps(value) if isinstance(value, str | list) else repr(value)


def renew(page: str) -> str:
    """The text of a page with its table as the fields are now."""
    table = format_table(*PAGES[page])
    text, count = _TABLE.subn(lambda _: table, (DOCS / page).read_text(encoding="utf-8"))
    assert count == 1, f"{page} has {count} tables of options; expected one"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(renew(page), encoding="utf-8")
