"""The stages of a recipe, each from its YAML file: `sense-trl sft --config X`, and so on.

The same stages run as `python -m sense_trl sft`, as `recipes/train_sft.py` in a checkout, and under
`accelerate launch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.stage import Stage, split_config_flag

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DPO", "EVALUATE", "KD", "PAIRS", "SFT", "STAGES", "add_parsers", "find_stage"]


def add_parsers(commands: Any) -> None:
    """Name the training stages in the help of `sense-trl`; `find_stage` runs them."""
    for stage in STAGES:
        if stage.name not in _WITH_CONFIG_ONLY:
            commands.add_parser(stage.name, help=stage.help, add_help=False)


def find_stage(argv: Sequence[str]) -> Stage | None:
    """The stage that a command line of `sense-trl` runs, if it runs one.

    `pairs` and `evaluate` have a life without a model, too; with `--config` they are stages.
    """
    found = next((stage for stage in STAGES if argv and stage.name == argv[0]), None)
    has_config = "--config" in split_config_flag(argv)
    if found is None or (found.name in _WITH_CONFIG_ONLY and not has_config):
        return None
    return found


@dataclass
class PairsFile:
    """Where the pairs are."""

    pairs: str = field(
        metadata={
            "help": "pairs.parquet as the stage `pairs` writes it, or other pairs as .parquet or "
            "JSON Lines."
        }
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "Which columns hold the prompt and the answers, where they have other names: a "
            'mapping of prompt, system, chosen and rejected, e.g. {"system": "system", "prompt": '
            '"question"}, or a layout: orca_dpo, distilabel_orca, ultrafeedback, implicit_prompt, '
            "hh_rlhf."
        },
    )


def _sft(data: Any, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import sft

    sft(data, model, training, console)


def _describe_sft(data: Any, training: Any, model: Any) -> str:
    return _describe_gold("sft", data, training, model)


def _describe_kd(data: Any, training: Any, model: Any) -> str:
    return _describe_gold("kd", data, training, model)


def _describe_gold(stage: str, data: Any, training: Any, model: Any) -> str:
    from sense_trl.steps.dry_run import describe_training
    from sense_trl.steps.stages import load_rows

    return describe_training(stage, load_rows(data), model, training)


def _dpo(file: PairsFile, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import dpo

    dpo(file.pairs, model, training, console, columns=file.columns)


def _describe_dpo(file: PairsFile, training: Any, model: Any) -> str:
    from sense_trl.steps.dry_run import describe_training
    from sense_trl.steps.stages import load_pairs

    return describe_training("dpo", load_pairs(file.pairs, file.columns), model, training)


def _kd(data: Any, training: Any, model: Any, console: Console) -> None:
    from sense_trl.steps.stages import kd

    kd(data, model, training, console)


def _pairs(data: Any, generation: Any, pairs: Any, console: Console) -> None:
    from sense_trl.steps.stages import build_pairs

    print(build_pairs(data, generation, pairs, console))  # noqa: T201 - the result


def _evaluate(data: Any, generation: Any, evaluation: Any, console: Console) -> None:
    from sense_trl.steps.stages import evaluate

    evaluate(data, generation, evaluation, console)


def _describe_generation(data: Any, generation: Any, _: Any) -> str:
    from sense_trl.steps.dry_run import describe_generation

    return describe_generation(data, generation)


_DATA: Final = "sense_trl.options:DataArguments"
_MODEL: Final = "trl:ModelConfig"
_GENERATION: Final = "sense_trl.steps.stages:GenerationArguments"

SFT: Final = Stage(
    "sft",
    "fine-tune a model on gold SQL",
    (_DATA, "sense_trl.trainers:SenseSFTConfig", _MODEL),
    _sft,
    _describe_sft,
)
PAIRS: Final = Stage(
    "pairs",
    "sample SQL from a model, execute it and build preference pairs",
    (_DATA, _GENERATION, "sense_trl.steps.stages:PairArguments"),
    _pairs,
    _describe_generation,
)
DPO: Final = Stage(
    "dpo",
    "train a model on preference pairs",
    (f"{__name__}:PairsFile", "sense_trl.trainers:SenseDPOConfig", _MODEL),
    _dpo,
    _describe_dpo,
)
KD: Final = Stage(
    "kd",
    "distil a teacher from imperfect data (KID)",
    (_DATA, "sense_trl.trainers:KIDConfig", _MODEL),
    _kd,
    _describe_kd,
)
EVALUATE: Final = Stage(
    "evaluate",
    "predict SQL with a model, execute it and report",
    (_DATA, _GENERATION, "sense_trl.steps.stages:EvaluationArguments"),
    _evaluate,
    _describe_generation,
)

STAGES: Final = (SFT, PAIRS, DPO, KD, EVALUATE)
_WITH_CONFIG_ONLY: Final = ("pairs", "evaluate")
