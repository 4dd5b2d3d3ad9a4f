"""Preference training from weak and strong data (SENSE) on TRL's `DPOTrainer`."""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import IterableDataset
from torch import Tensor
from trl import DPOTrainer

from sense_trl.chat_template import naming_template_errors
from sense_trl.chat_tokens import ChatTokenizer
from sense_trl.collators import (
    PAIR_MARGIN,
    PAIR_WEIGHT,
    PREFIX_TREE,
    DataCollatorForWeightedPreference,
)
from sense_trl.errors import InputError
from sense_trl.losses import cdpo_loss, dpo_loss, dpop_loss, masked_mean
from sense_trl.trainers.base import SenseTrainer, unify_conversations, without_limit
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.compat.trl import RecordedForward
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.answer_ends import find_answer_ends
from sense_trl.trainers.rows.checks import (
    check_datasets,
    get_column_names,
    refuse_equal_answers,
    refuse_untrained_rows,
)
from sense_trl.trainers.rows.differences import keep_differences
from sense_trl.trainers.rows.formats import PAIR_LAYOUTS
from sense_trl.trainers.rows.long_examples import leave_out_long_examples
from sense_trl.trainers.rows.pair_columns import prepare_pair_columns
from sense_trl.trainers.rows.several_rejected import split_rejected_lists
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sense_dpo_config import (
    SENSE_LOSS_TYPES,
    WEIGHTABLE_LOSS_TYPES,
    SenseDPOConfig,
)
from sense_trl.trainers.sharing.heads import LogitTerm
from sense_trl.trainers.sharing.prefix_sharing import get_checked_answers, require_trees
from sense_trl.trainers.teachers.choice import get_teacher
from sense_trl.trainers.teachers.reference_cache import (
    add_reference_logps,
    shared_by_processes,
    take_reference_logps,
)
from sense_trl.trainers.teachers.teacher import Teacher, get_term_of_part

_TOKENIZED_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_LAYOUTS = (("prompt", "chosen", "rejected"), _TOKENIZED_COLUMNS)
_REMEDY = (
    "sense_trl.trainers.rows.formats.select_pair_columns makes them of others, e.g. "
    'select_pair_columns(dataset, {"system": "system", "prompt": "question"}); `columns` of '
    f"`sense-trl dpo` takes the same, or the name of a layout: {', '.join(PAIR_LAYOUTS)}."
)


class SenseDPOTrainer(SenseTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's `DPOTrainer` with more losses, pair weights, shared prefixes and no silent cuts.

    * `loss_type` also takes `"cdpo"` and `"dpop"`, alone or in a list with TRL's losses.
    * A dataset column `pair_weight` weights each pair's loss, scaled once to a mean of 1 over the
      dataset (not per batch: the step size would then depend on which pairs meet). The chosen
      answer's tokens in `"sft"` are weighted likewise. Weighting does not change the `rewards/*`
      and `logps/*` metrics.
    * A dataset column `pair_margin` gives each pair the margin that it is to reach.
    * `rejected` may be a list of answers: each makes a pair with the chosen one, and the pairs of
      an example are drawn into the same batch. `per_device_train_batch_size` counts pairs.
    * With `truncate_rejected_after` a rejected answer ends shortly behind the first token in which
      it differs from the chosen one, and with `shared_prefix_as_prompt` both answers begin there.
    * With `kd_weight` a teacher's distribution is learned on the chosen answers, in the same
      forward of the policy: a model, an adapter on the policy's base, or a `TeacherCache`. Each
      answer counts as the mean divergence over its tokens, times its weight; metric `losses/kd`.
    * With `prefix_sharing` the prompt is computed once for both answers, and so is whatever else
      sequences of a batch have in common at their beginning; `group_by_columns` draws pairs with
      the same prompt or database into the same batch. `prefix_sharing/tokens_computed` and
      `tokens_saved` are logged.
    * A pair longer than `max_length` is never cut. Pairs that do not fit are counted, named, and
      left out if they are at most `max_dropped_fraction` of the dataset; else training does not
      start.
    * Text beside messages becomes a message, and answers that repeat their prompt lose it. Two
      texts without a `prompt` are refused: TRL would take what they begin with alike for one.
    * Where chosen answers end in a special token that generation does not stop at, it is made to;
      where they end in none, training does not start.
    * Datasets that hold `prompt_ids`, `chosen_ids` and `rejected_ids` are taken as they are.
    * Adapters of quantised models are stored in float32, and 4-bit models on a CPU are kept from
      bitsandbytes' in-place repacking.

    Everything else is TRL's: arguments, reference (disabled adapter, `ref_model`, or precomputed),
    metrics, checkpoints. With TRL's losses and without weights the result equals `DPOTrainer`'s up
    to rounding, and bit for bit with `prefix_sharing=False`. Each of our losses adds the metric
    `losses/<loss_type>`, unweighted by `loss_weights`.

    Like every loss of TRL's `DPOTrainer`, a micro-batch counts as its mean over pairs, so
    accumulating gradients over equal micro-batches equals one large batch for the losses that are
    one value per pair. `"sft"` is a mean over the tokens of a micro-batch and is not exactly so.

    Args:
        args: `SenseDPOConfig`; None takes its defaults.
        model, ref_model, data_collator, train_dataset, eval_dataset, processing_class,
        compute_metrics, callbacks, optimizers, quantization_config, peft_config: as in
            `trl.DPOTrainer`. A `data_collator` of your own needs to know nothing about weights.
        teacher_model: for `kd_weight` above 0, a model, its folder or hub id, or any
            `sense_trl.trainers.teachers.teacher.Teacher`; None for the one that `args` names.

    Raises:
        InputError: `args` is not a `SenseDPOConfig`, a dataset has no rows, lacks columns or has
            nulls in them, chosen and rejected are the same, too many pairs exceed `max_length`, the
            weights or margins are unusable or meet a loss that takes none, `prefix_sharing` is True
            where it is not exact, a column to group by is missing, or there is no teacher for
            `kd_weight` or one that does not fit.

    Example:

    ```python
    from datasets import Dataset
    from peft import LoraConfig

    from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer

    schema = "singer(id, name, age)"
    pairs = Dataset.from_list(
        [
            {
                "prompt": f"{schema}\\nHow many singers are there?\\n",
                "chosen": "SELECT COUNT(*) FROM singer",
                "rejected": "SELECT COUNT(age) FROM singer",
                "pair_weight": 1.0,
            },
            {
                "prompt": f"{schema}\\nWho is the oldest singer?\\n",
                "chosen": "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
                "rejected": "SELECT MAX(name) FROM singer",
                "pair_weight": 0.5,
            },
        ]
    )
    trainer = SenseDPOTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=SenseDPOConfig(
            output_dir="sense-dpo",
            loss_type=["cdpo", "sft"],
            loss_weights=[1.0, 0.1],
            learning_rate=5e-6,
            num_train_epochs=1,
            use_cpu=True,
        ),
        train_dataset=pairs,
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["trl", "dpo", "sense"]  # noqa: RUF012 - TRL declares it as an instance-level list
    _name = "SENSE DPO"
    _paper = {  # noqa: RUF012
        "title": "Synthesizing Text-to-SQL Data from Weak and Strong LLMs",
        "id": "2408.03256",
        "citation": textwrap.dedent("""\
            @inproceedings{yang2024synthesizing,
                title     = {{Synthesizing Text-to-SQL Data from Weak and Strong LLMs}},
                author    = {Jiaxi Yang and Binyuan Hui and Min Yang and Jian Yang and Junyang Lin and Chang Zhou},
                year      = 2024,
                booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics},
            }"""),  # noqa: E501
    }

    args: SenseDPOConfig
    _own_columns = (PAIR_WEIGHT, PAIR_MARGIN)
    _teacher: Teacher | None = None
    # Attributes of TRL's trainer that are read or replaced here.
    loss_types: list[str]
    loss_weights: list[float]
    precompute_ref_logps: bool

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: SenseDPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        teacher_model: Any = None,
    ) -> None:
        args = get_checked_args(args, model, SenseDPOConfig, "SenseDPO")
        check_datasets(train_dataset, eval_dataset, _LAYOUTS, remedy=_REMEDY)
        if isinstance(ref_model, str):
            raise InputError(
                f"`ref_model` is {ref_model!r}; expected a model, e.g. `AutoModelForCausalLM."
                "from_pretrained(...)`. Left out, it is the model as it is before training."
            )
        if teacher_model is not None and args.kd_weight == 0.0:
            raise InputError(
                "`teacher_model` is given, but `kd_weight` is 0: nothing would be learned from it. "
                "Set `kd_weight` above 0, or leave the teacher out."
            )
        self._refuse_unasked_losses(args)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if args.kd_weight > 0.0:
            self._teacher = get_teacher(self, teacher_model)
            self._kd_divergence = args.get_kd_divergence()
            require_trees(self)

    def _wrap_collator(self, collator: Any) -> Any:
        return super()._wrap_collator(DataCollatorForWeightedPreference(collator))

    # ---------------------------------------------------------------------------------- data

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: SenseDPOConfig, dataset_name: str
    ) -> Any:
        """Tokenise unless that is done, treat long pairs as `args` says, check the pair columns."""
        tokenizer = get_tokenizer(processing_class)
        pair_columns = [args.pair_weight_column, args.pair_margin_column]
        dataset = split_rejected_lists(dataset, [name for name in pair_columns if name])
        columns = get_column_names(dataset)
        if args.precompute_ref_log_probs:
            # Left from an earlier pass over the same dataset (`evaluate(trainer.eval_dataset)`);
            # TRL appends the columns again and fails on the duplicates.
            stale = columns & {"ref_chosen_logps", "ref_rejected_logps"}
            dataset = dataset.remove_columns(sorted(stale)) if stale else dataset
        if not columns >= set(_TOKENIZED_COLUMNS):
            dataset = unify_conversations(dataset, tokenizer, args)
            with naming_template_errors(f"the {dataset_name} dataset"):
                dataset = super()._prepare_dataset(
                    dataset,
                    ChatTokenizer.protect(processing_class),
                    without_limit(args),
                    dataset_name,
                )
        if dataset_name == "train":
            # A rejected answer that was cut off at the limit of its sampling ends in nothing.
            self._answer_ends = find_answer_ends(dataset, "chosen_ids", tokenizer)
        dataset = refuse_equal_answers(dataset, dataset_name)
        for column in ("chosen_ids", "rejected_ids"):
            dataset = refuse_untrained_rows(dataset, dataset_name, column, "pairs")
        dataset = keep_differences(
            dataset,
            shared_prefix_as_prompt=args.shared_prefix_as_prompt,
            truncate_rejected_after=args.truncate_rejected_after,
        )
        dataset = leave_out_long_examples(
            dataset,
            dataset_name,
            args,
            columns=_TOKENIZED_COLUMNS,
            get_length=_get_length,
            noun="pairs",
        )
        return prepare_pair_columns(dataset, dataset_name, args)

    # ---------------------------------------------------------------------------------- loss

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the reference, chosen and rejected, `[B]` each, in nats.

        Without dropout, whatever `disable_dropout` leaves to the policy.
        """
        # With `precompute_ref_log_probs` TRL calls this inside its constructor, in eval mode,
        # which is the first forward of a model that it has loaded itself.
        self._guard_quantized_models()
        # TRL hands every entry that it does not know to the model's forward, the tree as well.
        inputs = _without_pair_columns(inputs)
        inputs = self.prefix_sharing.add_tree(inputs)
        with evaluating(self.model if self.ref_model is None else self.ref_model):
            return super().compute_ref_log_probs(model, inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # Under DeepSpeed and FSDP the model cannot be run before it is wrapped; TRL does that.
        if (
            isinstance(dataset, IterableDataset)
            or self.is_deepspeed_enabled
            or self.is_fsdp_enabled
        ):
            if self.args.reference_cache is not None:
                raise InputError(
                    f"`reference_cache` is {self.args.reference_cache!r}, but under DeepSpeed and "
                    "FSDP the reference is computed by TRL, which keeps a cache of its own. Leave "
                    "it out, or compute the cache in a run without them."
                )
            with shared_by_processes(self, dataset, name) as shared:
                ready = super()._precompute_ref_logps(shared, name, batch_size)
                return take_reference_logps(dataset, ready)
        return add_reference_logps(self, dataset, batch_size)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of one micro-batch, a scalar: TRL's terms and ours over one forward of the policy.

        `num_items_in_batch` is always None here, since preference batches have no `labels`.
        """
        weights, margins = inputs.get(PAIR_WEIGHT), inputs.get(PAIR_MARGIN)
        inputs = _without_pair_columns(inputs)
        is_plain = weights is None and margins is None
        our_types = (
            *(SENSE_LOSS_TYPES if is_plain else WEIGHTABLE_LOSS_TYPES),
            *self.args.own_loss_types,
        )
        inputs = self.prefix_sharing.add_tree(inputs)
        self.prefix_sharing.log_tokens(inputs["input_ids"], inputs.get(PREFIX_TREE))
        is_trls = self._teacher is None and not set(self.args.loss_type) & set(our_types)
        if is_trls and PREFIX_TREE not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        if not self.precompute_ref_logps:
            ref_model = self.model if self.ref_model is None else self.ref_model
            ref_chosen_logps, ref_rejected_logps = self.compute_ref_log_probs(ref_model, inputs)
            inputs |= {
                "ref_chosen_logps": ref_chosen_logps,
                "ref_rejected_logps": ref_rejected_logps,
            }

        if self._teacher is not None:
            model = functools.partial(model, logit_terms=[self._get_kd_term(inputs)])
        policy = RecordedForward(model)
        with self._only_trl_terms(our_types):
            result = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        trl_loss, *outputs = result if return_outputs else (result,)

        per_token_logps = policy.get_per_token_logps(inputs["completion_mask"].size(1))
        loss = trl_loss
        for loss_type, loss_weight in zip(self.loss_types, self.loss_weights, strict=True):
            if loss_type in our_types:
                term = self._compute_term(loss_type, per_token_logps, inputs, weights, margins)
                loss = loss + term * loss_weight
                self._log_loss(loss_type, term)
        if self._teacher is not None:
            term = _get_kd_loss(policy.logit_terms[0], inputs["completion_mask"], weights)
            loss = loss + term * self.args.kd_weight
            self._log_loss("kd", term)
        return (loss, *outputs) if return_outputs else loss

    def _log_loss(self, name: str, term: Tensor) -> None:
        self._add_metric(f"losses/{name}", self.accelerator.gather(term.detach()).mean())

    def _get_kd_term(self, inputs: dict[str, Any]) -> LogitTerm:
        """The divergence from the teacher on the chosen answers; the batch gets a tree for it."""
        assert self._teacher is not None
        if PREFIX_TREE not in inputs:
            inputs[PREFIX_TREE] = self.prefix_sharing.lay_out(get_checked_answers(inputs))
        return get_term_of_part(
            self._teacher,
            inputs[PREFIX_TREE],
            slice(len(inputs["input_ids"]) // 2),
            self._kd_divergence,
            temperature=self.args.kd_temperature,
        )

    @contextlib.contextmanager
    def _only_trl_terms(self, our_types: tuple[str, ...]) -> Iterator[None]:
        """Let TRL compute its own losses and read the reference from the batch."""
        saved = self.loss_types, self.loss_weights, self.precompute_ref_logps
        kept = [
            (loss_type, weight)
            for loss_type, weight in zip(self.loss_types, self.loss_weights, strict=True)
            if loss_type not in our_types
        ]
        self.loss_types = [loss_type for loss_type, _ in kept]
        self.loss_weights = [weight for _, weight in kept]
        self.precompute_ref_logps = True
        try:
            yield
        finally:
            self.loss_types, self.loss_weights, self.precompute_ref_logps = saved

    def _compute_term(
        self,
        loss_type: str,
        per_token_logps: Tensor,
        inputs: dict[str, Any],
        pair_weights: Tensor | None,
        pair_margins: Tensor | None,
    ) -> Tensor:
        """One loss of the list as a scalar, before its entry of `loss_weights`.

        Args:
            per_token_logps: `[2B, L - 1]`, zero outside the answers, chosen rows first.
            inputs: `completion_mask` `[2B, L]`, `ref_chosen_logps`, `ref_rejected_logps` `[B]`.
            pair_weights: `[B]` with a mean of 1 over the dataset, or None for no weights.
            pair_margins: `[B]`, or None for no target margins.
        """
        if loss_type == "sft":
            nll, _ = (-per_token_logps).chunk(2)
            chosen_mask, _ = inputs["completion_mask"][:, 1:].chunk(2)
            nll = nll if pair_weights is None else nll * pair_weights[:, None]
            # The divisor stays the unweighted token count: dividing by the weighted one would
            # cancel the weight of a micro-batch of one pair.
            return masked_mean(nll, chosen_mask)
        chosen_logps, rejected_logps = per_token_logps.sum(dim=1).chunk(2)
        losses = self.compute_pair_losses(
            loss_type,
            chosen_logps,
            rejected_logps,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            0.0 if pair_margins is None else pair_margins,
        )
        if losses.shape != chosen_logps.shape:
            # The mean of a batch would take no weights.
            raise InputError(
                f"`compute_pair_losses` gives the shape {list(losses.shape)} for the loss "
                f"{loss_type!r}; expected one value per pair, {list(chosen_logps.shape)}."
            )
        return losses.mean() if pair_weights is None else (losses * pair_weights).mean()

    def _refuse_unasked_losses(self, args: SenseDPOConfig) -> None:
        """Refuse a `compute_pair_losses` of a subclass that TRL's losses would never ask."""
        is_own = type(self).compute_pair_losses is not SenseDPOTrainer.compute_pair_losses
        if is_own and not {*SENSE_LOSS_TYPES, *args.own_loss_types} & {*args.loss_type}:
            raise InputError(
                f"`{type(self).__name__}.compute_pair_losses` is asked for no loss of `loss_type` "
                f"{args.loss_type!r}: TRL computes them. Name those that are yours in "
                f"`own_loss_types` of a subclass of {type(args).__name__}."
            )

    def compute_pair_losses(
        self,
        loss_type: str,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        target_margin: Tensor | float,
    ) -> Tensor:
        """One loss per pair, `[B]`, before weights.

        Override it for a loss of your own, named in the `own_loss_types` of a subclass of
        `SenseDPOConfig`; prefix sharing, the reference, weights, margins and the metric
        `losses/<loss_type>` work for it as they do for ours.

        Args:
            loss_type: an entry of `args.loss_type` that TRL is not asked to compute.
            chosen_logps, rejected_logps: `[B]`, log-probabilities of the answers under the policy,
                summed over their tokens, in nats.
            ref_chosen_logps, ref_rejected_logps: `[B]`, those under the reference, no gradient.
            target_margin: `[B]`, from the dataset; 0.0 without.
        """
        logps = (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
        options: dict[str, Any] = {"beta": self.args.beta, "target_margin": target_margin}
        if loss_type == "sigmoid":
            return dpo_loss(*logps, **options)
        if loss_type == "cdpo":
            eps = self.args.label_smoothing
            assert eps is not None, "SenseDPOConfig resolves it"
            return cdpo_loss(*logps, **options, label_smoothing=eps)
        if loss_type == "dpop":
            return dpop_loss(*logps, **options, dpop_lambda=self.args.dpop_lambda)
        raise InputError(
            f"`loss_type` has {loss_type!r}, which `own_loss_types` names and "
            f"`{type(self).__name__}.compute_pair_losses` does not compute. Override it."
        )


def _get_kd_loss(values: Tensor, completion_mask: Tensor, pair_weights: Tensor | None) -> Tensor:
    """The mean over pairs of the mean over the chosen answer's tokens, a scalar.

    Args:
        values: `[2B, L - 1]`, divergences, chosen rows first.
        completion_mask: `[2B, L]`.
        pair_weights: `[B]`, or None for no weights.
    """
    chosen_values, _ = values.chunk(2)
    chosen_mask, _ = completion_mask[:, 1:].chunk(2)
    losses = (chosen_values * chosen_mask).sum(1) / chosen_mask.sum(1).clamp(min=1)
    return losses.mean() if pair_weights is None else (losses * pair_weights).mean()


def _without_pair_columns(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch for a model, which gets every entry that TRL does not know."""
    return {key: value for key, value in inputs.items() if key not in (PAIR_WEIGHT, PAIR_MARGIN)}


def _get_length(lengths: dict[str, Any]) -> Any:
    return lengths["prompt_ids"] + np.maximum(lengths["chosen_ids"], lengths["rejected_ids"])
