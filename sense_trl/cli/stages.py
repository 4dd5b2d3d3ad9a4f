"""The stages of a recipe, each from its YAML file: `sense-trl sft --config X`, and so on.

The same stages run as `python -m sense_trl sft`, as `recipes/train_sft.py` in a checkout, and under
`accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.stage import Stage
from sense_trl.errors import InputError
from sense_trl.options import PromptOptions, option, option_of

if TYPE_CHECKING:
    from rich.console import Console


def add_parsers(commands: Any) -> None:
    """Name the stages in the help of `sense-trl`; `find_stage` runs them."""
    for stage in STAGES:
        if stage is not PAIRS:
            commands.add_parser(stage.name, help=stage.help, add_help=False)


def find_stage(argv: Sequence[str]) -> tuple[Stage, list[str]] | None:
    """The stage that a command line of `sense-trl` runs, with its arguments, if it runs one.

    `pairs` has actions; the stage is `build`, which may be left out.
    """
    found = next((stage for stage in STAGES if argv and stage.name == argv[0]), None)
    if found is None:
        return None
    arguments = [*argv[1:]]
    if found is PAIRS and arguments and not arguments[0].startswith("-"):
        return (found, arguments[1:]) if arguments[0] == "build" else None
    return found, arguments


@dataclass
class PairsFile:
    """The files of pairs that a stage trains on, and their columns."""

    pairs: list[str] = option(
        "pairs.parquet as the stage `pairs` writes it, or other pairs as .parquet or JSON Lines. "
        "Of several files, such as first turns and repairs, all pairs are trained on."
    )
    columns: str | None = option(
        "Which columns hold the prompt and the answers, where they have other names: a mapping of "
        'prompt, system, chosen and rejected, e.g. {"system": "system", "prompt": "question"}, or '
        "a layout: orca_dpo, distilabel_orca, ultrafeedback, implicit_prompt, hh_rlhf.",
        default=None,
    )
    force_style: bool = option_of(PromptOptions, "force_style")


def _sft(data: Any, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import sft

    sft(data, model, training, console)


def _describe_gold(stage: str, data: Any, training: Any, model: Any) -> str:
    from sense_trl.steps.dry_run import describe_training
    from sense_trl.steps.stages import load_rows

    teacher = getattr(training, "teacher_model_name_or_path", None)
    rows = load_rows(data, model.model_name_or_path, teacher, link_for=training)
    return describe_training(stage, rows, model, training)


def _dpo(file: PairsFile, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import dpo

    dpo(
        file.pairs,
        model,
        training,
        console,
        columns=file.columns,
        force_style=file.force_style,
    )


def _describe_dpo(file: PairsFile, training: Any, model: Any) -> str:
    from sense_trl.steps.dry_run import describe_training
    from sense_trl.steps.stages import load_pairs

    return describe_training("dpo", load_pairs(file.pairs, file.columns), model, training)


def _grpo(data: Any, rewards: Any, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import grpo

    grpo(data, rewards, model, training, console)


def _describe_grpo(data: Any, rewards: Any, training: Any, model: Any) -> str:
    from sense_trl.steps.dry_run import describe_online_training
    from sense_trl.steps.verification import get_limits

    return describe_online_training(data, model, training, limits=get_limits(rewards))


def _kd(data: Any, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import kd

    kd(data, model, training, console)


def _pairs(data: Any, generation: Any, config: Any, options: Any, console: Console) -> None:
    from sense_trl.cli.pairs import build_from_files
    from sense_trl.steps.stages import build_pairs

    files = [*options.candidates, *options.weak, *options.strong]
    if generation is None:
        _check_unused(data, "split", "max_questions", "subset_seed", "max_unusable_fraction")
        build_from_files(data, config, options, console)
        return
    _check_one_source(files, "candidates", generation)
    print(build_pairs(data, generation, config, console, options))  # noqa: T201 - the result


def _evaluate(data: Any, generation: Any, evaluation: Any, console: Console) -> None:
    if generation is None:
        from sense_trl.cli.evaluate import evaluate_files

        if not evaluation.predictions:
            raise InputError(
                "`predictions` are missing: name files of them, or a model that predicts as "
                "`model_name_or_path`."
            )
        prompt = {option.name for option in fields(PromptOptions)} - {"tables_json"}
        unused = ("split", "max_questions", "subset_seed", "max_unusable_fraction")
        _check_unused(data, *unused, *prompt)
        _check_unused(evaluation, "revise")
        evaluate_files(data, evaluation, console)
        return
    from sense_trl.steps.stages import evaluate

    _check_one_source(evaluation.predictions, "predictions", generation)
    evaluate(data, generation, evaluation, console)


def _check_one_source(files: Sequence[str], name: str, generation: Any) -> None:
    """A model writes what is not in files."""
    if files:
        raise InputError(
            f"`{name}` are given, {', '.join(files)}, and `model_name_or_path` is "
            f"{generation.model_name_or_path!r}; expected files or a model. Leave one of them out."
        )


def _check_unused(data: Any, *names: str) -> None:
    """Options that would be ignored, because all that is in files is read and no model asked."""
    for field in fields(data):
        value = getattr(data, field.name)
        if field.name in names and value != field.default:
            raise InputError(
                f"`{field.name}` is {value!r}, but files are read, and as they are. Leave it out, "
                "or give a model as `model_name_or_path`."
            )


def _describe_generation(data: Any, generation: Any, *others: Any) -> str:
    from sense_trl.steps.dry_run import describe_generation
    from sense_trl.steps.verification import get_limits

    if generation is None:
        raise InputError("`dry_run` says what is sampled, but there is no `model_name_or_path`.")
    # How queries are executed comes last, of pairs and of evaluations.
    return describe_generation(data, generation, limits=get_limits(others[-1]))


_DATA: Final = "sense_trl.options:DataArguments"
_MODEL: Final = "trl:ModelConfig"
_GENERATION: Final = "sense_trl.steps.arguments:GenerationArguments"

SFT: Final = Stage(
    "sft",
    "fine-tune a model on gold SQL",
    (_DATA, "sense_trl.trainers:SenseSFTConfig", _MODEL),
    _sft,
    partial(_describe_gold, "sft"),
)
PAIRS: Final = Stage(
    "pairs",
    "build preference pairs of SQL that a model samples, or of files of candidates",
    (
        _DATA,
        _GENERATION,
        "sense_trl.pairs.config:PreferencePairConfig",
        "sense_trl.steps.arguments:PairArguments",
    ),
    _pairs,
    _describe_generation,
    optional=(_GENERATION,),
    usage=(
        "pairs [build] --weak [NAME=]FILE ... [--option VALUE ...]",
        "pairs inspect|stats|answers ...",
    ),
    needs_trl=False,
)
DPO: Final = Stage(
    "dpo",
    "train a model on preference pairs",
    (f"{__name__}:PairsFile", "sense_trl.trainers:SenseDPOConfig", _MODEL),
    _dpo,
    _describe_dpo,
)
GRPO: Final = Stage(
    "grpo",
    "train a model online on what execution says of its answers (GRPO)",
    (
        _DATA,
        "sense_trl.steps.arguments:RewardArguments",
        "sense_trl.trainers:SenseGRPOConfig",
        _MODEL,
    ),
    _grpo,
    _describe_grpo,
)
KD: Final = Stage(
    "kd",
    "distil a teacher from imperfect data (KID)",
    (_DATA, "sense_trl.trainers:KIDConfig", _MODEL),
    _kd,
    partial(_describe_gold, "kd"),
)
EVALUATE: Final = Stage(
    "evaluate",
    "score predictions of a model, or of files, with intervals, and write a report",
    (_DATA, _GENERATION, "sense_trl.steps.arguments:EvaluationArguments"),
    _evaluate,
    _describe_generation,
    optional=(_GENERATION,),
    usage=("evaluate PREDICTIONS ... [--option VALUE ...]",),
    needs_trl=False,
)

STAGES: Final = (SFT, PAIRS, DPO, KD, GRPO, EVALUATE)
