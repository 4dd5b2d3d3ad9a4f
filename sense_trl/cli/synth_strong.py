"""`sense-trl synth strong`: a strong model invents databases with questions."""

from __future__ import annotations

import argparse
from typing import Any

from sense_trl.cli.arguments import (
    add_dataclass_arguments,
    add_endpoint_arguments,
    take_generator,
)

__all__ = ["add_parser", "run"]


def add_parser(actions: Any) -> None:
    """Add the action and its flags; imports nothing heavy."""
    from sense_trl.synthesis.strong.config import StrongDataConfig

    parser: argparse.ArgumentParser = actions.add_parser(
        "strong",
        help="let a strong model invent databases with questions (SENSE's strong data)",
        description="Ask a model behind an OpenAI-compatible server for a domain, a schema, a "
        "question and its SQL, two training examples at a time; make each database with rows; keep "
        "what runs, answers, is new, and leaks no evaluation set. An interrupted run continues "
        "when the same command is given again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_endpoint_arguments(parser, required=True)
    parser.add_argument(
        "--examples", required=True, help="training questions with gold SQL, to show two of them"
    )
    parser.add_argument("--output", required=True, help="folder for the data set")
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation questions: what is close to one of them is left out",
    )
    parser.add_argument("--num-workers", type=int, default=None, help="processes that run the SQL")
    add_dataclass_arguments(parser, StrongDataConfig)


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the action.

    Returns:
        0 when all calls are answered, whatever is kept.

    Raises:
        SenseTRLError: unusable input, or a server that does not answer (exit code 2).
    """
    from sense_trl.questions import load_questions
    from sense_trl.steps.progress import stage_bar
    from sense_trl.synthesis.strong.config import StrongDataConfig
    from sense_trl.synthesis.strong.data import build_strong_data

    generator = take_generator(arguments)
    assert generator is not None, "both flags are required"
    # Which database a question is of does not matter: each answer invents its own.
    examples = load_questions(arguments.pop("examples"), default_db_id="unknown")
    excluded = [
        question
        for path in arguments.pop("exclude")
        for question in load_questions(path, default_db_id="unknown")
    ]
    output, num_workers = arguments.pop("output"), arguments.pop("num_workers")
    config = StrongDataConfig(**arguments)
    with stage_bar(console, "Asking", config.num_calls) as bar:
        result = build_strong_data(
            generator,
            examples,
            output,
            config,
            excluded=excluded,
            num_workers=num_workers,
            on_progress=bar.advance,
        )
    usage = generator.usage
    console.print(
        f"{usage.num_requests} requests, {usage.num_prompt_tokens} tokens read, "
        f"{usage.num_completion_tokens} written; data set: {output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    print(_summary(result.account))  # noqa: T201 - the result of the command
    return 0


def _summary(account: dict[str, Any]) -> str:
    """Counts by filter and reason."""
    total = account["num_examples"]
    kept = account["num_kept"]
    lines = [f"{'calls':<32}{total:>7}", f"{'kept':<32}{kept:>7}{100 * kept / total:>8.1f} %"]
    for name, reasons in account["removed"].items():
        lines.append(f"{name:<32}{sum(reasons.values()):>7}")
        lines += [f"  {reason:<30}{count:>7}" for reason, count in reasons.items()]
    return "\n".join(lines)
