"""Options of the stages beside data, training and model; imports nothing heavy."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from sense_trl.errors import InputError, check_at_least
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.options import (
    BackendOptions,
    CandidateOptions,
    ExtractOptions,
    GeneratorOptions,
    OutputOptions,
    PredictionOptions,
    RevisionOptions,
    VerificationOptions,
    option,
    option_of,
)


@dataclass
class GenerationArguments(GeneratorOptions):
    """Options of generation: the model that writes SQL, and its sampling."""

    output_dir: str = option_of(OutputOptions, "output_dir")
    num_generations: int = option("Completions per question.", default=1)
    temperature: float = option("Temperature of sampling; 0 decodes greedily.", default=0.0)
    top_p: float = option("Nucleus share of sampling.", default=1.0)
    batch_size: int = option("Completions written together.", default=64)
    generation_seed: int = option("Seed of sampling.", default=0)
    candidate_source: str = option(
        "What the candidates are recorded as: weak or strong.", default="weak"
    )
    stop_at_fence: bool = option(
        "End an answer where its first fenced block with a query is closed, and count it as "
        "finished: for a chat model that goes on explaining until its limit. What it would write "
        "behind is not looked at.",
        default=False,
    )

    def __post_init__(self) -> None:
        self.check()
        if self.candidate_source not in ("weak", "strong"):
            raise InputError(
                f"`candidate_source` is {self.candidate_source!r}; expected weak or strong."
            )

    def get_generator(self) -> SQLGenerator:
        """The model, loaded or at its server."""
        from sense_trl.steps.generator import load_generator

        return load_generator(self, batch_size=self.batch_size)

    def sampling(self) -> SamplingConfig:
        """These arguments as a `SamplingConfig`."""
        return SamplingConfig(
            num_generations=self.num_generations,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.generation_seed,
            stop_at_fence=self.stop_at_fence,
        )


def check_answering(num_generations: int, temperature: float, revise: int) -> None:
    """Refuse ways to answer a question that do not go together.

    Raises:
        InputError: several answers without a temperature, or with second turns.
    """
    check_at_least(0, revise=revise)
    check_at_least(1, num_generations=num_generations)
    if num_generations == 1:
        return
    if temperature == 0:
        raise InputError(
            f"`num_generations` is {num_generations}, but at `temperature` 0 a model writes the "
            "same answer each time. Leave it at 1, or set a temperature, e.g. 0.7."
        )
    if revise:
        raise InputError(
            f"`revise` is {revise}, but `num_generations` is {num_generations}; a second turn is "
            "about one answer. Leave one of them out."
        )


@dataclass(kw_only=True)
class PairArguments(BackendOptions, VerificationOptions, CandidateOptions):
    """Candidates of files instead of a model's, and how all are verified."""

    skip_missing_databases: bool = option(
        "With files, leave out questions whose database is not there, and name them in pairs.json.",
        default=False,
    )
    output_dir: str | None = option_of(OutputOptions, "output_dir", default=None)


@dataclass
class EvaluationArguments(BackendOptions, VerificationOptions, ExtractOptions, RevisionOptions):
    """Predictions of files instead of a model's, what is measured, and where the report goes."""

    run_name: list[str] | None = option(
        "Label of each run; by default the name of its file or folder.",
        default=None,
        aliases=["--name"],
    )
    compare_with: list[str] = option(
        "evaluation.json of earlier runs on the same questions, to compare with.",
        default_factory=list,
        metavar="JSON",
    )
    _: KW_ONLY
    predictions: list[str] = option_of(
        PredictionOptions,
        "predictions",
        default=(),
        note="Of a plain line, a tab and the db_id at its end are cut off; Spider's accuracy and "
        "exact-set match cut at the first tab, as the official script does.",
    )
    soft_f1: bool = option("Measure Soft-F1.", default=False)
    efficiency: int | None = option(
        "Measure VES and R-VES, running each correct query so many times (BIRD's scripts: 100).",
        default=None,
    )
    output_dir: str | None = option_of(OutputOptions, "output_dir", default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(2, efficiency=self.efficiency)
        if self.efficiency is not None and self.backend != "local":
            raise InputError(
                f"`efficiency` is {self.efficiency}, and `backend` {self.backend!r}: times that "
                "are taken beside other work, on machines that differ, say nothing. Measure "
                "efficiency with the backend local."
            )


_REWARDS = ("execution", "executes", "columns", "overlap", "schema_items")


@dataclass(kw_only=True)
class RewardArguments(VerificationOptions):
    """What a policy that is trained online is rewarded for, and what becomes of its answers."""

    rewards: list[str] = option(
        "Rewards, added up with `reward_weights`: execution (1 for an answer like gold's, else 0), "
        "and parts of one, from 0 to 1: executes, columns (their number), overlap (cells in "
        "common), schema_items (tables and columns that are used).",
        default_factory=lambda: ["execution"],
    )
    reward_error: float = option("Reward `execution` of a query that does not run.", default=0.0)
    rollout_pairs: bool = option(
        "Make preference pairs of what the policy has written, its right answers against its wrong "
        "ones, in the folder `pairs` of the training.",
        default=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards or (unknown := {*self.rewards} - {*_REWARDS}):
            found = sorted(unknown) if self.rewards else self.rewards
            raise InputError(
                f"`rewards` has {found}; expected one or more of {', '.join(_REWARDS)}."
            )
