"""Configuration of `SenseDPOTrainer`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from trl import DPOConfig

from sense_trl.errors import InputError, check_at_least
from sense_trl.options import option, option_of
from sense_trl.trainers.compat.trl import (
    LABEL_SMOOTHING_READERS,
    get_trl_loss_types,
    use_current_checkpointing_names,
)
from sense_trl.trainers.options import SenseOptions
from sense_trl.trainers.teacher_options import TeacherOptions

logger = logging.getLogger(__name__)

SENSE_LOSS_TYPES = ("cdpo", "dpop")
"""The values of `loss_type` that TRL does not have."""

WEIGHTABLE_LOSS_TYPES = ("sigmoid", "cdpo", "dpop", "sft")
"""The values of `loss_type` that a weight and a target margin per pair can be applied to."""

MARGIN_LOSS_TYPES = ("sigmoid", "cdpo", "hinge", "exo_pair", "robust", "aot", "discopop")
"""The values of `loss_type` in which tokens that both answers begin with cancel."""

_DEFAULT_CDPO_LABEL_SMOOTHING = 0.1
# Options that change what TRL feeds into its losses, and their values where they do not.
_CHANGED_LOGPS = (("ld_alpha", None), ("use_weighting", False))


@dataclass
class SenseDPOConfig(TeacherOptions, SenseOptions, DPOConfig):  # type: ignore[misc]
    r"""Options of `SenseDPOTrainer`: those of `trl.DPOConfig`, a teacher's, and those below.

    Three of TRL's own fields differ: `loss_type` also accepts `"cdpo"` and `"dpop"` and defaults to
    `["cdpo"]`; `label_smoothing` is resolved from the loss; `max_length` defaults to 2048, and a
    pair that does not fit is never cut.

    Raises:
        InputError: an option is out of range, or would be ignored by the chosen loss.

    Example:
        >>> config = SenseDPOConfig(output_dir="out", loss_type=["cdpo", "sft"], use_cpu=True)
        >>> config.label_smoothing
        0.1
    """

    own_loss_types: ClassVar[tuple[str, ...]] = ()
    """Further values of `loss_type`, for a subclass whose trainer computes them: see
    `SenseDPOTrainer.compute_pair_losses`."""

    loss_type: list[str] = option(
        "Loss, or list of losses that are added up with `loss_weights`. Besides TRL's: 'cdpo', "
        "conservative DPO, which the released code of SENSE trains with (arXiv 2408.03256), and "
        "'dpop', DPO-Positive (arXiv 2402.13228). Text-to-SQL often profits from an anchor on the "
        "chosen answer: ['cdpo', 'sft'].",
        default_factory=lambda: ["cdpo"],
    )
    label_smoothing: float | None = option(
        "Probability that the label of a pair is wrong. Left out, it is 0.1 when `loss_type` has "
        "'cdpo' and 0 otherwise. Used by 'cdpo', 'robust', 'exo_pair', 'aot' and 'aot_unpaired', "
        "which share the one value; a positive value that no loss uses is an error. 'cdpo' with 0 "
        "is DPO.",
        default=None,
    )
    dpop_lambda: float = option(
        "Weight of DPO-Positive's penalty on a chosen answer that is less likely than under the "
        "reference. Used by 'dpop' only. The default is the value used for Smaug (arXiv "
        "2402.13228).",
        default=50.0,
    )
    pair_weight_column: str | None = option(
        "Dataset column with one weight per pair, used when the dataset has it; null never looks. "
        "Weights are at least 0 and are scaled to a mean of 1 over each dataset. Available with "
        "the losses 'sigmoid', 'cdpo', 'dpop' and 'sft'; weights that are all equal are passed "
        "over with the others.",
        default="pair_weight",
    )
    pair_margin_column: str | None = option(
        "Dataset column with one target margin per pair, used when the dataset has it; null never "
        "looks. The reward of the chosen answer is to exceed that of the rejected one by it, `-log "
        "sigmoid(x - margin)` (arXiv 2402.10571): more for answers that are further from right. "
        "Available with the losses 'sigmoid', 'cdpo' and 'dpop', beside which 'sft' may stand.",
        default="pair_margin",
    )
    shared_prefix_as_prompt: bool = option(
        "Whether tokens that chosen and rejected answer begin with alike count as the end of the "
        "prompt, so that answers begin where they differ. Changes what is not a function of the "
        "margin alone: 'ipo' and 'sigmoid_norm', which divide by the number of tokens, 'nca_pair', "
        "'bco_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'aot_unpaired', the penalty of 'dpop', "
        "and 'sft' and a teacher, which then learn the differing part only. An error with other "
        "losses alone, as such tokens cancel in them.",
        default=False,
    )
    truncate_rejected_after: int | None = option(
        "Number of tokens of a rejected answer that are kept from the first one on that differs "
        "from the chosen answer; 1 keeps that token alone. What follows a wrong token is often "
        "right behind a right one, and is made less likely with it. Left out, all are kept.",
        default=None,
    )
    reference_cache: str | None = option(
        "Parquet file that keeps the reference's log-probabilities for other runs, with "
        "`precompute_ref_log_probs`. A pair is found again by its tokens and the reference's "
        "weights, whatever the dataset around it, its order, or the adapter that is trained. Left "
        "out, they are computed anew in every run.",
        default=None,
    )

    kd_weight: float = option_of(
        TeacherOptions,
        "kd_weight",
        default=0.0,
        note="It is of the chosen answers, beside `loss_weights`; 0, the default, needs no "
        "teacher. Each answer counts as the mean over its tokens, times its pair weight.",
    )
    kd_loss_type: str = option_of(
        TeacherOptions,
        "kd_loss_type",
        default="forward_kl",
        note="The default has the student cover what the teacher may say; our choice.",
    )

    def __post_init__(self) -> None:
        loss_type: str | list[str] = self.loss_type
        self.loss_type = [loss_type] if isinstance(loss_type, str) else loss_type
        self._check_loss_type()
        self._resolve_label_smoothing()
        check_at_least(0, dpop_lambda=self.dpop_lambda)
        self._check_options()
        self._check_teacher_options()
        self._check_differences()
        if self.kd_weight == 0.0 and (named := self.get_named_teachers()):
            raise InputError(
                f"`{named[0]}` is set, but `kd_weight` is 0: nothing would be learned from the "
                "teacher. Set `kd_weight` above 0, or leave the teacher out."
            )
        if self.reference_cache is not None and not self.precompute_ref_log_probs:
            raise InputError(
                f"`reference_cache` is {self.reference_cache!r}, but `precompute_ref_log_probs` is "
                "False: nothing would be kept. Set it to True, or leave `reference_cache` out."
            )
        use_current_checkpointing_names(self)
        super().__post_init__()

    def check_losses_take_column(self, option: str, column: str) -> None:
        """Make sure that the losses and their options are those that take a value per pair.

        Args:
            option: field that names the column.
            column: of a dataset, with the values.

        Raises:
            InputError: one of them takes none.
        """
        advice = f"Remove the column, set `{option}` to null, or change the option named first."
        for loss_type in self.loss_type:
            if loss_type not in WEIGHTABLE_LOSS_TYPES + self.own_loss_types:
                raise InputError(
                    f"`loss_type` {loss_type!r} takes no value per pair, but the column {column!r} "
                    f"of the dataset (`{option}`) has values that differ. Available with it: "
                    f"{', '.join(WEIGHTABLE_LOSS_TYPES)}. {advice}"
                )
        for name, unset in (*_CHANGED_LOGPS, ("f_divergence_type", "reverse_kl")):
            if (value := getattr(self, name)) != unset:
                raise InputError(
                    f"`{name}` is {value!r}; expected {unset!r} together with the column "
                    f"{column!r} (`{option}`). {advice}"
                )

    def _check_loss_type(self) -> None:
        ours = (*SENSE_LOSS_TYPES, *self.own_loss_types)
        known = (*ours, *get_trl_loss_types())
        if not self.loss_type:
            raise InputError("`loss_type` is empty; expected at least one loss, e.g. ['cdpo'].")
        for loss_type in self.loss_type:
            if loss_type not in known:
                raise InputError(
                    f"`loss_type` has {loss_type!r}; expected one of "
                    f"{', '.join(map(repr, known))}. One of your own is named in `own_loss_types` "
                    f"of a subclass of {SenseDPOConfig.__name__}."
                )
        sense = [loss_type for loss_type in self.loss_type if loss_type in ours]
        if not sense:
            return
        # Ours are defined without them.
        for name, unset in _CHANGED_LOGPS:
            if (value := getattr(self, name)) != unset:
                raise InputError(
                    f"`{name}` is {value!r}, but the loss {sense[0]!r} is not defined with it. "
                    f"Leave `{name}` at {unset!r} or use one of TRL's losses."
                )
        if self.f_divergence_type != "reverse_kl":
            raise InputError(
                f"`f_divergence_type` is {self.f_divergence_type!r}, but the loss {sense[0]!r} is "
                "defined with 'reverse_kl'. Leave it there or use one of TRL's losses."
            )

    def _check_differences(self) -> None:
        kept = self.truncate_rejected_after
        if kept is not None and (isinstance(kept, bool) or kept < 1):
            raise InputError(
                f"`truncate_rejected_after` is {kept!r}; expected a number of tokens of at least "
                "1, or None to keep all of a rejected answer."
            )
        # Another divergence is no difference, and weights are of whole answers.
        cancels = self.f_divergence_type == "reverse_kl" and not self.use_weighting
        if (
            self.shared_prefix_as_prompt
            and cancels
            and self.kd_weight == 0.0
            and set(self.loss_type) <= set(MARGIN_LOSS_TYPES)
        ):
            raise InputError(
                f"`shared_prefix_as_prompt` is True, but `loss_type` {self.loss_type!r} depends on "
                "the margin alone, in which tokens that both answers begin with cancel: nothing "
                "would change. Leave it out, or use a loss that reads an answer by itself, e.g. "
                "'sft', 'dpop', 'ipo' or 'sigmoid_norm'."
            )

    def _resolve_label_smoothing(self) -> None:
        if self.label_smoothing_factor:
            raise InputError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor!r}, which is of losses "
                "on tokens: no loss on pairs reads it. The probability that a pair's label is "
                "wrong is `label_smoothing`."
            )
        if self.label_smoothing is None:
            has_cdpo = "cdpo" in self.loss_type
            self.label_smoothing = _DEFAULT_CDPO_LABEL_SMOOTHING if has_cdpo else 0.0
        if "cdpo" in self.loss_type and not 0.0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"`label_smoothing` is {self.label_smoothing!r}; expected for 'cdpo' the "
                "probability that a pair's label is wrong, in [0, 0.5)."
            )
        if self.label_smoothing == 0.0:
            return
        # A loss of a subclass may read any option.
        known = ("cdpo", *self.own_loss_types, *LABEL_SMOOTHING_READERS)
        readers = [t for t in self.loss_type if t in known]
        # `sft` compares no answers, so there is no label it could smooth.
        ignoring = [t for t in self.loss_type if t not in readers and t != "sft"]
        if not readers:
            raise InputError(
                f"`label_smoothing` is {self.label_smoothing!r}, but `loss_type` {self.loss_type!r}"
                " ignores it. Use loss_type 'cdpo', which is DPO ('sigmoid') with label smoothing, "
                "or set `label_smoothing` to 0."
            )
        if ignoring:
            logger.warning(
                "`label_smoothing` %s is used by %s and ignored by %s.",
                self.label_smoothing,
                ", ".join(readers),
                ", ".join(ignoring),
            )
