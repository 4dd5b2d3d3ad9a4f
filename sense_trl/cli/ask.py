"""`sense-trl ask` and `sense-trl prompt`: a question to a model, and what the model reads of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import format_result, make_visible, quieten_libraries
from sense_trl.errors import InputError, SenseTRLError, check_at_least
from sense_trl.options import (
    DatabaseOptions,
    ExecutionOptions,
    GeneratorOptions,
    PromptOptions,
    RevisionOptions,
    option,
    option_of,
)
from sense_trl.steps.arguments import GenerationArguments, check_answering

if TYPE_CHECKING:
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import QueryResult
    from sense_trl.evaluation.samples import ExecutionVote

_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130
_UNFOLDED: Final = 10_000


@dataclass(kw_only=True)
class AskOptions(RevisionOptions, PromptOptions, GeneratorOptions):
    """The question, the model and the database."""

    question: str | None = option(
        "The question; each line of the standard input is one if left out.",
        default=None,
        positional=True,
    )
    database: str | None = option_of(
        DatabaseOptions, "database", default=None, note="The quickstart's if left out."
    )
    db_id: str | None = option("Which database of the folder.", default=None)
    evidence: str | None = option("What the schema does not say.", default=None)
    num_generations: int = option(
        "Answers to write; of several, with a `temperature`, the one whose result most of them "
        "have.",
        default=1,
    )
    temperature: float = option_of(GenerationArguments, "temperature")
    max_rows: int = option("Rows to show of each result.", default=20)
    timeout_s: float = option_of(ExecutionOptions, "timeout_s")


def run_ask(options: AskOptions, console: Any) -> int:
    """Run the command."""
    from rich.console import Console

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import ExecutionLimits
    from sense_trl.evaluation.samples import vote_by_execution
    from sense_trl.generation.generator import SamplingConfig
    from sense_trl.jobs.own_data_config import OwnDataConfig
    from sense_trl.prompts import Attempt, choose_answer, extract_sql

    check_at_least(0, max_rows=options.max_rows)
    number = options.num_generations
    check_answering(number, options.temperature, options.revise)
    sampling = SamplingConfig(
        num_generations=number,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
    )
    limits = ExecutionLimits(timeout_s=options.timeout_s)
    path = options.database
    if path is None:
        path = OwnDataConfig().get_data_paths()[0]
        console.print("No `--database`: the quickstart's flights are asked.", style="yellow")
    quieten_libraries()
    from sense_trl.steps.generator import load_generator
    from sense_trl.steps.prompting import open_writer

    with contextlib.ExitStack() as stack:
        catalog = stack.enter_context(DatabaseCatalog.from_path(path, limits=limits))
        db_id = choose_database(catalog, options.db_id)
        model, base_url = options.model_name_or_path, options.base_url
        writer = stack.enter_context(open_writer(options, catalog, db_id, model, base_url=base_url))
        with console.status("Reading the database"):
            writer.prepare(db_id)
        with console.status("Loading the model"):
            generator = load_generator(options, batch_size=number)
        # What goes to a file or another program is not folded.
        output = Console() if sys.stdout.isatty() else Console(width=_UNFOLDED)
        max_width = output.width if sys.stdout.isatty() else None
        engine = catalog.engine(db_id)

        def tell(text: str) -> None:
            console.print(make_visible(text), style="yellow", markup=False, highlight=False)

        def answer(question: str) -> int:
            answers: list[tuple[str, QueryResult]] = []
            attempts: list[Attempt | None] = []
            while True:
                messages = writer.get_messages(
                    db_id, question, evidence=options.evidence, attempts=filter(None, attempts)
                )
                with console.status("Writing SQL"):
                    [completions] = generator.generate([messages], sampling)
                samples = [extract_sql(completion.text) for completion in completions]
                vote = None
                if number > 1:
                    with console.status(f"Running {number} answers"):
                        vote = vote_by_execution(samples, engine)
                sql = vote.sql if vote else samples[0]
                result = (vote and vote.result) or engine.execute(sql)
                answers.append((sql, result))
                attempts.append(Attempt.of(sql, result))
                if attempts[-1] is None or len(attempts) > options.revise:
                    break
                tell(f"{sql}\n{result.error or 'It finds no rows.'} Asking again.")
            stands = choose_answer(attempts)
            sql, result = answers[stands]
            output.print(make_visible(sql), markup=False, highlight=False, soft_wrap=True)
            rows = format_result(result, options.max_rows, max_width=max_width)
            output.print(rows, "", highlight=False)
            if vote:
                tell(_describe_vote(vote))
            if len(attempts) > 1:
                which = f"Revised: this is answer {stands + 1} of {len(attempts)}."
                tell(which if stands else "Asked again in vain: this is the first answer.")
            return 0 if result.ok else _EXIT_FAILED

        try:
            if options.question is not None:
                return answer(options.question)
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


def _describe_vote(vote: ExecutionVote) -> str:
    if vote.num_votes:
        return f"{vote.num_votes} of {vote.num_samples} answers have this result."
    return (
        f"None of {vote.num_samples} answers runs and gives the same result each time; this is the "
        "first."
    )


def choose_database(catalog: DatabaseCatalog, db_id: str | None) -> str:
    """The database of a name, or the only one.

    Raises:
        InputError: there is none of that name, or several and no name.
    """
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


ASK: Final = Command(
    "ask",
    "ask a trained model about a database, and execute what it writes",
    run_ask,
    (AskOptions,),
    description="Write SQL for a question with a model, execute it read-only within limits, and "
    "show both. Without a question, one is read from each line of the standard input. The prompt "
    "is that of training where the model has a sense_prompt.json; `sense-trl prompt` shows it.",
)


_PARTS: Final = ("instruction", "schema", "evidence", "matched_values", "question")


@dataclass(kw_only=True)
class ShowOptions(PromptOptions, DatabaseOptions):
    """The question, the database, and the model that is to be asked."""

    question: str = option("The question.", positional=True)
    db_id: str | None = option_of(AskOptions, "db_id")
    evidence: str | None = option_of(AskOptions, "evidence")
    model_name_or_path: str | None = option_of(
        GeneratorOptions,
        "model_name_or_path",
        default=None,
        note="Its style is followed, and its tokenizer counts.",
    )
    as_json: bool = option("Print the messages as JSON.", default=False)


def run_prompt(options: ShowOptions, console: Any) -> None:
    """Run the command."""
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
        return
    shown = [f"--- {message['role']}\n{message['content']}\n" for message in messages]
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    facts = [
        f"style {writer.style.hash}, prompt {hashlib.sha256(text.encode()).hexdigest()[:16]}",
        *_count_parts(parts, model or options.prompt_tokenizer, messages),
    ]
    if parts.left_out:
        facts.append(f"left out of the schema: {parts.left_out}")
    facts += [f"not shown: {count} {reason}" for reason, count in sorted(left_out.items())]
    print(make_visible("\n".join([*shown, "---", *facts])))  # noqa: T201 - the result


def _count_parts(parts: Any, tokenizer_name: str | None, messages: Any) -> list[str]:
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


PROMPT: Final = Command(
    "prompt",
    "show what a model reads for a question, with tokens by part",
    run_prompt,
    (ShowOptions,),
    description="Print the messages of a question exactly as ask, pairs, evaluate and training "
    "make them, the tokens of each part, and what is not shown and why. With --model_name_or_path "
    "the prompt is that of the model's sense_prompt.json.",
)
