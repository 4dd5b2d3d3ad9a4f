"""Supervised fine-tuning on TRL's `SFTTrainer` that reads every schema once per batch."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from trl import SFTTrainer

from sense_trl.chat_template import (
    fold_system_message,
    naming_template_errors,
    require_chat_template,
)
from sense_trl.chat_tokens import ChatTokenizer
from sense_trl.trainers.compat.deferred_metrics import DeferredMetrics
from sense_trl.trainers.compat.quantization import (
    disable_cpu_weight_repacking,
    get_float32_parameters,
    store_adapter_in_float32,
)
from sense_trl.trainers.compat.saving import saving_whole_models
from sense_trl.trainers.held_date import hold_template_date
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.answer_ends import AnswerEnds, ensure_answers_end, find_answer_ends
from sense_trl.trainers.rows.checks import check_datasets, refuse_untrained_rows
from sense_trl.trainers.rows.formats import prepare_chat_template, unify_rows
from sense_trl.trainers.rows.long_examples import leave_out_long_examples
from sense_trl.trainers.sense_sft_config import SenseSFTConfig
from sense_trl.trainers.sharing.prefix_sharing import (
    add_prefix_tree,
    get_grouped_sampler,
    log_tokens,
    set_up_prefix_sharing,
)

# The columns of TRL's data formats, and those of data that is tokenised already.
_LAYOUTS = (("prompt", "completion"), ("messages",), ("conversations",), ("input_ids",))

_NUM_PACKED_CHECKED = 16


class SenseSFTTrainer(DeferredMetrics, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer` with shared prefixes and no silent cuts.

    * Questions about one database begin with the same schema. With `prefix_sharing` what the
      examples of a batch have in common at their beginning is computed once, and
      `group_by_columns=["db_id"]` draws questions about one database into the same batch. Loss,
      gradients and metrics are TRL's up to rounding; `prefix_sharing/tokens_computed` and
      `tokens_saved` are logged.
    * An example longer than `max_length` is never cut (except by `packing`). Examples that do not
      fit are counted, named, and left out if they are at most `max_dropped_fraction` of the
      dataset; else training does not start.
    * Where answers end in a special token that generation does not stop at (a base model under a
      chat template), generation is made to stop at it; where they end in none, training does not
      start. Neither does it with rows that have no token to learn.
    * Adapters of quantised models are stored in float32, and 4-bit models on a CPU are kept from
      bitsandbytes' in-place repacking.

    Everything else is TRL's: datasets, losses, metrics, checkpoints.

    Args:
        args: `SenseSFTConfig`; None takes its defaults.
        model, data_collator, train_dataset, eval_dataset, processing_class, compute_loss_func,
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
        preprocess_logits_for_metrics, quantization_config, peft_config, formatting_func: as in
            `trl.SFTTrainer`. A `data_collator` of your own needs to know nothing about prefixes.

    Raises:
        InputError: `args` is not a `SenseSFTConfig`, a dataset has no rows, lacks columns or has
            nulls in them, too many examples exceed `max_length`, `prefix_sharing` is True where it
            is not exact, or a column to group by is missing.

    Example:

    ```python
    from datasets import Dataset

    from sense_trl.trainers import SenseSFTConfig, SenseSFTTrainer

    schema = "singer(id, name, age)"
    answers = {
        "How many singers are there?": "SELECT COUNT(*) FROM singer",
        "Who is the oldest singer?": "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
    }
    examples = Dataset.from_list(
        [
            {"db_id": "concert", "prompt": f"{schema}\\n{question}\\n", "completion": sql}
            for question, sql in answers.items()
        ]
    )
    trainer = SenseSFTTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=SenseSFTConfig(
            output_dir="sense-sft",
            group_by_columns=["db_id"],
            per_device_train_batch_size=8,
            num_train_epochs=1,
            use_cpu=True,
        ),
        train_dataset=examples,
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["trl", "sft", "sense"]  # noqa: RUF012 - TRL declares it as an instance-level list
    _name = "SENSE SFT"

    args: SenseSFTConfig
    _answer_ends: AnswerEnds | None = None
    # Attributes of TRL's trainer that are read or replaced here.
    data_collator: Any
    chat_template: str | None

    def __init__(
        self,
        model: Any,
        args: SenseSFTConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Any = None,
    ) -> None:
        args = get_checked_args(args, model, SenseSFTConfig, "SenseSFT")
        # A formatting function or a collator may read any columns.
        is_own = formatting_func or (args.dataset_kwargs or {}).get("skip_prepare_dataset")
        layouts = [] if is_own else [*_LAYOUTS, (args.dataset_text_field,)]
        check_datasets(train_dataset, eval_dataset, layouts)
        if args.assistant_only_loss and args.chat_template_path is None and processing_class:
            # TRL searches the template, which there may be none of, before it looks at the rows.
            require_chat_template(processing_class)
        float32_parameters = get_float32_parameters(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        if self._answer_ends is not None:
            ensure_answers_end(
                self._answer_ends,
                self.model,
                self._tokenizer,
                is_required=args.require_end_token,
            )
        disable_cpu_weight_repacking(self.model)
        store_adapter_in_float32(self.model, args, float32_parameters)
        self._shares_prefixes = set_up_prefix_sharing(self)
        self._grouped_sampler = get_grouped_sampler(self)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SenseSFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Tokenise unless that is done, and leave out or refuse what is too long."""
        # Without `max_length` TRL does not cut. A shallow copy, because `dataclasses.replace` would
        # run `__post_init__` again.
        unlimited = copy.copy(args)
        unlimited.max_length = None
        processing_class = ChatTokenizer.protect(processing_class)
        if not formatting_func:
            dataset = unify_rows(dataset)
            if prepare_chat_template(dataset, self._tokenizer, fold=args.fold_system_message):
                hold_template_date(args, self._tokenizer)
            if args.fold_system_message:
                # TRL's, where that of the tokenizer does not say what the assistant writes.
                self.chat_template = fold_system_message(self.chat_template)
        # Where examples end is not to be seen any more once they are packed.
        rows = dataset.take(_NUM_PACKED_CHECKED) if packing else dataset
        with naming_template_errors(f"the {dataset_name} dataset"):
            rows = super()._prepare_dataset(
                rows, processing_class, unlimited, False, formatting_func, dataset_name
            )
        if dataset_name == "train":
            self._answer_ends = find_answer_ends(rows, "labels", self._tokenizer)
        if packing:
            return super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        dataset = refuse_untrained_rows(rows, dataset_name, "labels", "rows")
        return leave_out_long_examples(
            dataset,
            dataset_name,
            args,
            columns=("input_ids",),
            get_length=lambda lengths: lengths["input_ids"],
            noun="examples",
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._grouped_sampler is not None:
            return self._grouped_sampler
        return super()._get_train_sampler(train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss of one micro-batch, from its prefix tree where prefixes are shared."""
        if self._shares_prefixes:
            inputs = add_prefix_tree(self, inputs)
            log_tokens(self, inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a model that `from_pretrained` reads, whatever FSDP does with checkpoints."""
        with contextlib.nullcontext() if _internal_call else saving_whole_models(self):
            super().save_model(output_dir, _internal_call)
