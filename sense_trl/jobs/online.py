"""Online SENSE: a model learns from its own right and wrong answers, round by round."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from sense_trl._files import write_text_atomically
from sense_trl.chat_template import check_chat_template
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator, load_tokenizer
from sense_trl.jobs.online_config import OnlineConfig
from sense_trl.jobs.output import claim_output
from sense_trl.pairs.builder import PreferencePairConfig
from sense_trl.questions import Question
from sense_trl.steps import work
from sense_trl.steps.cpu import fastest_sampling_dtype
from sense_trl.steps.prompting import load_styled_task
from sense_trl.steps.training import get_unattended_options, train_unattended
from sense_trl.steps.verification import get_limits
from sense_trl.task import TextToSQLTask, draw_questions
from sense_trl.verification.verifier import SQLVerifier

logger = logging.getLogger(__name__)

_SUMMARY: Final = "rounds.json"


def run_online(config: OnlineConfig, console: Console) -> Path:
    """Run the rounds, or what is left of them.

    A round asks the model as it is, executes its answers, pairs right ones with wrong ones, and
    trains on the pairs with the model before the round as reference. Each step of a round leaves
    its result in `round-N`, so that a run that was stopped goes on where it was.

    Args:
        config: all settings.
        console: where progress is shown.

    Returns:
        Folder of the model that the last round leaves; that of `config` if no round had a pair.

    Raises:
        SenseTRLError: unusable input; what earlier rounds wrote stays.
    """
    task = load_styled_task(config, config.model, limits=get_limits(config))
    check_chat_template(load_tokenizer(config.model), Path(config.model).name)
    pairing = PreferencePairConfig(
        policy=config.policy,
        limit=config.pairs_per_question,
        chosen_sources=("weak",),
        seed=config.seed,
    )
    # Refused before anything is sampled.
    _get_training(config, Path(config.output_dir), num_pairs=1)
    not_decisive = ("num_workers", "cache_dir", "batch_size")
    claim_output("online", config, config.model, [task], not_decisive=not_decisive)
    output, model = Path(config.output_dir), Path(config.model)
    rounds: list[dict[str, Any]] = []
    verifier = SQLVerifier(
        task.catalog,
        limits=get_limits(config),
        num_workers=config.num_workers,
        cache_dir=config.cache_dir,
    )
    with verifier:
        for number in range(1, config.num_rounds + 1):
            folder = output / f"round-{number}"
            questions = draw_questions(
                [*task.questions],
                config.questions_per_round,
                config.seed + number,
                argument="questions_per_round",
            )
            counts = _make_pairs(task, questions, model, folder, config, pairing, verifier, console)
            if counts["num_pairs"]:
                _train(model, folder, counts["num_pairs"], task, config, console)
                model = folder / "model"
            else:
                logger.warning(
                    "Round %d has no question with a right and a wrong answer: %d questions, "
                    "distinct answers by verdict %s, left out %s. The model stays as it is: "
                    "raise `num_samples` or `questions_per_round`, `max_new_tokens` where answers "
                    "are unfinished, or fine-tune it first.",
                    number,
                    len(questions),
                    counts["verdicts"],
                    counts["dropped_candidates"],
                )
            rounds.append({"round": number, **counts, "model": str(model)})
            write_text_atomically(output / _SUMMARY, json.dumps(rounds, indent=1))
            console.print(_describe(rounds[-1]), markup=False)
    task.catalog.close()
    return model


def _make_pairs(
    task: TextToSQLTask,
    questions: list[Question],
    model: Path,
    folder: Path,
    config: OnlineConfig,
    pairing: PreferencePairConfig,
    verifier: SQLVerifier,
    console: Console,
) -> dict[str, Any]:
    """Sample, verify and pair, unless that is done; what `pairs.json` says."""
    number = folder.name
    path = folder / "pairs" / "pairs.json"
    if not path.exists():
        sampling = SamplingConfig(
            num_generations=config.num_samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            # A model that stays as it was would write the same answers again.
            seed=config.seed + int(number.removeprefix("round-")),
        )
        name = f"{Path(config.model).name}, {number}"
        candidates = work.predict(
            task,
            questions,
            lambda: TransformersGenerator(
                model, batch_size=config.batch_size, dtype=fastest_sampling_dtype(), name=name
            ),
            sampling,
            folder / "candidates.jsonl",
            console,
            f"Sample {number}",
            batch_size=config.batch_size,
        )
        asked = task.select(questions)
        work.pair(asked, candidates, verifier, pairing, path.parent, console)
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = ("num_questions", "num_pairs", "verdicts", "dropped_candidates")
    return {name: found[name] for name in kept}


def _train(
    model: Path,
    folder: Path,
    num_pairs: int,
    task: TextToSQLTask,
    config: OnlineConfig,
    console: Console,
) -> None:
    """Train on the pairs of a round, with the model before it as reference."""
    import datasets

    arguments = _get_training(config, folder, num_pairs)

    pairs = datasets.Dataset.from_parquet(
        str(folder / "pairs" / "pairs.parquet"), cache_dir=str(folder / "cache")
    )
    title, style = f"Train {folder.name}", task.writer.style
    train_unattended(model, pairs, arguments, style, console, title, lora_r=config.lora_r)


def _get_training(config: OnlineConfig, folder: Path, num_pairs: int) -> Any:
    """The `SenseDPOConfig` of a round's training on so many pairs."""
    from sense_trl.trainers import SenseDPOConfig

    options = get_unattended_options(
        folder / "model",
        num_rows=num_pairs,
        num_epochs=config.num_epochs,
        batch_size=config.train_batch_size,
        group_by_columns=["db_id"],
        seed=config.seed,
    )
    # A round may have a single step, which warming up would take.
    options["warmup_steps"] = options["max_steps"] // 10
    return SenseDPOConfig(
        loss_type=[*config.loss_type],
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        learning_rate=config.learning_rate,
        max_length=config.max_length,
        **options,
    )


def _describe(finished: dict[str, Any]) -> str:
    verdicts = finished["verdicts"]
    known = verdicts.get("correct", 0) + verdicts.get("wrong", 0)
    share = verdicts.get("correct", 0) / max(1, known)
    return (
        f"Round {finished['round']}: {100 * share:.1f} % of {known} distinct answers are right, "
        f"{finished['num_pairs']} pairs of {finished['num_questions']} questions; "
        f"model {finished['model']}"
    )
