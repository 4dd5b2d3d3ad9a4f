"""`sense-trl ask`: a question to a trained model, its SQL and what the database answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.terminal import format_result, make_visible
from sense_trl.errors import InputError, SenseTRLError

if TYPE_CHECKING:
    from sense_trl.database.catalog import DatabaseCatalog

__all__ = ["add_parser", "run"]

_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130
_UNFOLDED: Final = 10_000
# `SCHEMA_STYLES`, whose module is not imported before the command runs.
_STYLES: Final = ("compact", "codes", "ddl")


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ask",
        help="ask a trained model about a database, and execute what it writes",
        description="Write SQL for a question with a model, execute it read-only within limits, "
        "and show both. Without a question, one is read from each line of the standard input. The "
        "prompt is that of training and evaluation: give the schema and the evidence as there.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("question", nargs="?", default=None, help="the question")
    parser.add_argument(
        "--model",
        required=True,
        help="model folder, adapter folder or hub id; with --base-url the server's name for it",
    )
    parser.add_argument(
        "--database",
        default=None,
        help="a database file, or a folder of them with --db-id; the quickstart's if left out",
    )
    parser.add_argument("--db-id", default=None, help="which database of the folder")
    parser.add_argument("--tables-json", default=None, help="Spider's tables.json, for schemas")
    parser.add_argument(
        "--schema-style", default="compact", choices=_STYLES, help="how the schema is written"
    )
    parser.add_argument("--evidence", default=None, help="what the schema does not say")
    parser.add_argument("--base-url", default=None, help="e.g. http://localhost:8000/v1")
    parser.add_argument(
        "--api-key-env", default=None, help="environment variable that holds the server's key"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16")
    parser.add_argument("--load-in-4bit", action="store_true", help="hold the weights in 4 bits")
    parser.add_argument(
        "--fold-system-message",
        action="store_true",
        help="put the schema in front of the question, for a chat template without a system role",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer, in tokens")
    parser.add_argument("--max-rows", type=int, default=20, help="rows to show")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="seconds a query may run")


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0; 1 if the SQL of the one question does not run; 130 after Ctrl-C.

    Raises:
        InputError: unusable arguments (exit code 2).
        DatabaseError: there is no such database.
        ModelError: there is no such model.
    """
    from rich.console import Console

    from sense_trl.cli.quickstart import quieten_libraries
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import ExecutionLimits
    from sense_trl.generation.generator import SamplingConfig
    from sense_trl.jobs.own_data_config import OwnDataConfig
    from sense_trl.prompts import extract_sql, get_prompt
    from sense_trl.schema import format_schema
    from sense_trl.task import read_schemas

    if arguments["max_rows"] < 0:
        raise InputError(f"`max_rows` is {arguments['max_rows']}; expected 0 or more.")
    sampling = SamplingConfig(max_new_tokens=arguments["max_new_tokens"])
    limits = ExecutionLimits(timeout_s=arguments["timeout_s"])
    path = arguments["database"]
    if path is None:
        path = OwnDataConfig().get_data_paths()[0]
        console.print("No `--database`: the quickstart's flights are asked.", style="yellow")
    with DatabaseCatalog.from_path(path, limits=limits) as catalog:
        db_id = _choose_database(catalog, arguments["db_id"])
        schema = read_schemas(catalog, {db_id}, arguments["tables_json"])[db_id]
        text = format_schema(schema, style=arguments["schema_style"])
        quieten_libraries()
        from sense_trl.steps.generator import load_generator

        with console.status("Loading the model"):
            generator = load_generator(
                arguments["model"],
                base_url=arguments["base_url"],
                api_key_env=arguments["api_key_env"],
                dtype=arguments["dtype"],
                load_in_4bit=arguments["load_in_4bit"],
                batch_size=1,
                fold_system_message=arguments["fold_system_message"],
            )
        # What goes to a file or another program is not folded.
        output = Console() if sys.stdout.isatty() else Console(width=_UNFOLDED)
        max_width = output.width if sys.stdout.isatty() else None
        engine = catalog.engine(db_id)

        def answer(question: str) -> int:
            messages = get_prompt(
                question, text, dialect=schema.dialect, evidence=arguments["evidence"]
            )
            with console.status("Writing SQL"):
                [[completion]] = generator.generate([messages], sampling)
            sql = extract_sql(completion.text)
            output.print(make_visible(sql), markup=False, highlight=False, soft_wrap=True)
            result = engine.execute(sql)
            rows = format_result(result, arguments["max_rows"], max_width=max_width)
            output.print(rows, "", highlight=False)
            return 0 if result.ok else _EXIT_FAILED

        try:
            if arguments["question"] is not None:
                return answer(arguments["question"])
            for question in _read_questions(console):
                try:
                    answer(question)
                # Others may follow, and the model is loaded.
                except SenseTRLError as error:
                    console.print(str(error), style="red", markup=False, highlight=False)
        # The way out for whoever types questions.
        except KeyboardInterrupt:
            console.print()
            return _EXIT_INTERRUPTED
    return 0


def _choose_database(catalog: DatabaseCatalog, db_id: str | None) -> str:
    if db_id is None:
        if len(catalog) > 1:
            raise InputError(
                f"`db_id` is missing: there are {len(catalog)} databases. Name one of them, such "
                f"as {catalog.db_ids[0]!r}."
            )
        return catalog.db_ids[0]
    catalog.path(db_id)
    return db_id


def _read_questions(console: Any) -> Iterator[str]:
    """Those of the standard input, a line each; asked for where somebody types them."""
    if sys.stdin is None:
        raise InputError("`question` is missing, and there is no standard input to read one from.")
    while True:
        if sys.stdin.isatty():
            console.print("question: ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
