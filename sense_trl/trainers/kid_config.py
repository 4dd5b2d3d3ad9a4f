"""Configuration of `KIDTrainer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sense_trl.errors import InputError, check_at_least
from sense_trl.options import option
from sense_trl.trainers.kid.imperfect import FILLS, MASK_STRATEGIES
from sense_trl.trainers.sense_sft_config import SenseSFTConfig
from sense_trl.trainers.teacher_options import TeacherOptions

_MASK_UNITS = ("token", "schema_item")


@dataclass
class KIDConfig(TeacherOptions, SenseSFTConfig):
    r"""Options of `KIDTrainer`: those of `SenseSFTConfig`, the teacher's, and the ones below.

    Published settings are those of KID (Zhong et al., Learning from Imperfect Data: Towards
    Efficient Knowledge Distillation of Autoregressive Language Models for Text-to-SQL, arXiv
    2410.11371): reverse KL, random masks, a share of 0.2. What is not published says so, with our
    choice; so does the weight of the distillation term, `kd_weight`, which is 1.

    Raises:
        InputError: an option is out of range, or would be ignored.

    Example:
        >>> config = KIDConfig(output_dir="out", mask_ratio=0.1, use_cpu=True, bf16=False)
        >>> config.kd_loss_type, config.mask_strategy
        ('reverse_kl', 'random')
    """

    imperfect_data: bool = option(
        "Whether the teacher is asked about imperfect copies of the gold answers (KID) or about "
        "the gold answers: ordinary distillation, and ImitKD on a dataset of answers that another "
        "model wrote.",
        default=True,
    )
    mle_weight: float = option(
        "Weight of the likelihood of the gold answer. 0 with `on_policy_fraction` 1 is GKD (arXiv "
        "2306.13649).",
        default=1.0,
    )
    mask_ratio: float = option(
        "Share of an answer's tokens that are masked, alpha. Published: 0.2 is best, 0.1 to 0.3 "
        "fine, 0.5 harmful. At least one token is masked.",
        default=0.2,
    )
    mask_strategy: str = option(
        "Which tokens are masked: 'random' (published as the best), 'uniform' (evenly spaced, from "
        "a random place on), 'hard' or 'easy' (those the student is least or most sure of in the "
        "gold answer, which takes one more forward pass).",
        default="random",
        choices=list(MASK_STRATEGIES),
    )
    mask_unit: str = option(
        "'token' (published), or 'schema_item': whole tables, columns and literals. They are read "
        "from the dataset column `mask_spans`: for each row a list of [start, end] in characters "
        "of the completion, as `sense_trl.sql.spans` finds them. A row without any is masked token "
        "by token.",
        default="token",
        choices=list(_MASK_UNITS),
    )
    mask_token: str | None = option(
        "Token that stands in for a masked one. Left out, the first that the tokenizer has of its "
        "padding, end and unknown tokens; the log says which. (The paper's <s> is missing in many "
        "tokenizers.)",
        default=None,
    )
    fill: str = option(
        "What is put in place of a masked token: the student's prediction, 'argmax' (our choice "
        "where the paper says only that it is the student's) or 'sample'; or 'mask', which leaves "
        "the mask tokens (the paper's ablation without rewriting).",
        default="argmax",
        choices=list(FILLS),
    )
    on_policy_fraction: float = option(
        "Share of the examples for which the student writes an answer of its own, on which the "
        "teacher is asked (GKD). For comparison: it costs several times a step. Each of these "
        "answers weighs as much as the gold one, however long it is.",
        default=0.0,
    )
    on_policy_temperature: float = option(
        "Temperature at which the student writes; 0 takes the likeliest token.", default=1.0
    )
    on_policy_max_new_tokens: int = option(
        "Longest answer that the student writes, in tokens.", default=128
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.link_weight:
            raise InputError(
                f"`link_weight` is {self.link_weight!r}, but `KIDTrainer` trains no linker. Train "
                "it along with `sense-trl sft`, or alone with `sense-trl link train`."
            )
        self._check_teacher_options()
        self._check_choices()
        self._check_numbers()
        if self.teacher_cache is not None:
            self.check_teacher_cache(self.teacher_cache)

    def check_teacher_cache(self, path: str | Path) -> None:
        """Make sure that a cache can know what the teacher is to be asked about.

        Raises:
            InputError: answers are made during training.
        """
        if self.imperfect_data or self.on_policy_fraction:
            raise InputError(
                f"`teacher_cache` is {str(path)!r}, but the teacher is to judge answers that are "
                "made during training, which no cache can hold. Set `imperfect_data` to false and "
                "`on_policy_fraction` to 0 for distillation on the gold answers, or use a live "
                "teacher: in 4 bits (`teacher_model_init_kwargs`) or an adapter on the student's "
                "base (`teacher_adapter_name`)."
            )

    def _check_choices(self) -> None:
        choices = {
            "mask_strategy": MASK_STRATEGIES,
            "mask_unit": _MASK_UNITS,
            "fill": FILLS,
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(
                    f"`{name}` is {value!r}; expected one of {', '.join(map(repr, known))}."
                )

    def _check_numbers(self) -> None:
        check_at_least(
            0, mle_weight=self.mle_weight, on_policy_temperature=self.on_policy_temperature
        )
        check_at_least(1, on_policy_max_new_tokens=self.on_policy_max_new_tokens)
        if self.kd_weight == 0.0:
            raise InputError(
                "`kd_weight` is 0; expected a number above: no teacher would be learned from. Use "
                "SenseSFTTrainer, e.g. on answers that a teacher wrote (SeqKD)."
            )
        if not 0.0 < self.mask_ratio <= 1.0:
            raise InputError(
                f"`mask_ratio` is {self.mask_ratio!r}; expected a share in (0, 1]. To train on the "
                "gold answers alone, set `imperfect_data` to false."
            )
        if not 0.0 <= self.on_policy_fraction <= 1.0:
            raise InputError(
                f"`on_policy_fraction` is {self.on_policy_fraction!r}; expected a share in [0, 1]."
            )
