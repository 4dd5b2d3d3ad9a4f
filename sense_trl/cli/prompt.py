"""`sense-trl prompt`: the exact messages that a model reads for a question, and their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from sense_trl.cli.ask import AskOptions, choose_database
from sense_trl.cli.command import Command
from sense_trl.cli.terminal import make_visible, quieten_libraries
from sense_trl.options import DatabaseOptions, GeneratorOptions, PromptOptions, option_of

_PARTS: Final = ("instruction", "schema", "evidence", "matched_values", "question")


@dataclass(kw_only=True)
class ShowOptions(PromptOptions, DatabaseOptions):
    """The question, the database, and the model that is to be asked."""

    question: str = field(metadata={"help": "The question.", "positional": True})
    db_id: str | None = option_of(AskOptions, "db_id")
    evidence: str | None = option_of(AskOptions, "evidence")
    model_name_or_path: str | None = option_of(
        GeneratorOptions,
        "model_name_or_path",
        default=None,
        note="Its style is followed, and its tokenizer counts.",
    )
    as_json: bool = field(default=False, metadata={"help": "Print the messages as JSON."})


def run(options: ShowOptions, console: Any) -> int:
    """Run the command.

    Returns:
        0 when the prompt was shown.

    Raises:
        InputError: unusable arguments (exit code 2).
        DatabaseError: there is no such database.
        ModelError: there is no such tokenizer.
    """
    from sense_trl.database.catalog import DatabaseCatalog

    quieten_libraries()
    from sense_trl.steps.prompting import open_writer

    model = options.model_name_or_path
    with DatabaseCatalog.from_path(options.database) as catalog:
        db_id = choose_database(catalog, options.db_id)
        with (
            open_writer(options, catalog, db_id, model) as writer,
            console.status("Reading the database"),
        ):
            parts = writer.get_parts(db_id, options.question, evidence=options.evidence)
            left_out = dict(writer.get_left_out(db_id))
    messages = parts.messages
    if options.as_json:
        print(json.dumps(messages, ensure_ascii=False, indent=2))  # noqa: T201 - the result
        return 0
    shown = [f"--- {message['role']}\n{message['content']}\n" for message in messages]
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    facts = [
        f"style {writer.style.hash}, prompt {hashlib.sha256(text.encode()).hexdigest()[:16]}",
        *_count(parts, model or options.prompt_tokenizer, messages),
    ]
    if parts.left_out:
        facts.append(f"left out of the schema: {parts.left_out}")
    facts += [f"not shown: {count} {reason}" for reason, count in sorted(left_out.items())]
    print(make_visible("\n".join([*shown, "---", *facts])))  # noqa: T201 - the result
    return 0


def _count(parts: Any, tokenizer_name: str | None, messages: Any) -> list[str]:
    """Tokens of each part, and of the whole as a chat template writes it; characters without."""
    count: Callable[[str], int] = len
    unit, whole = "characters", sum(len(message["content"]) for message in messages)
    if tokenizer_name is not None:
        from sense_trl.chat_tokens import apply_chat_template
        from sense_trl.checkpoints.starting_model import load_stage_tokenizer

        tokenizer = load_stage_tokenizer(tokenizer_name)
        unit = "tokens"
        ids = apply_chat_template(
            tokenizer, messages, add_generation_prompt=True, return_dict=False
        )
        whole = len(ids)

        def count(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    counted = [(name, count(text)) for name in _PARTS if (text := getattr(parts, name))]
    return [f"{name.replace('_', ' ')}: {n} {unit}" for name, n in [*counted, ("whole", whole)]]


COMMAND: Final = Command(
    "prompt",
    "show what a model reads for a question, with tokens by part",
    run,
    (ShowOptions,),
    description="Print the messages of a question exactly as ask, pairs, evaluate and training "
    "make them, the tokens of each part, and what is not shown and why. With --model_name_or_path "
    "the prompt is that of the model's sense_prompt.json.",
)
