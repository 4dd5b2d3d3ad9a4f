"""Common base of `SenseSFTTrainer` and `KIDTrainer`: rows with an answer, on TRL's SFT."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from trl import SFTTrainer

from sense_trl.chat_template import (
    fold_system_message,
    naming_template_errors,
    require_chat_template,
)
from sense_trl.chat_tokens import ChatTokenizer
from sense_trl.trainers.base import SenseTrainer, unify_conversations, without_limit
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.answer_ends import find_answer_ends
from sense_trl.trainers.rows.checks import check_datasets, refuse_untrained_rows
from sense_trl.trainers.rows.long_examples import leave_out_long_examples
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sense_sft_config import SenseSFTConfig

# The columns of TRL's data formats, and those of data that is tokenised already.
_LAYOUTS = (("prompt", "completion"), ("messages",), ("conversations",), ("input_ids",))

_NUM_PACKED_CHECKED = 16


class BaseSFTTrainer(SenseTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer` with rows that are checked and never cut; its loss is TRL's.

    See `SenseSFTTrainer` for arguments and errors.
    """

    args: SenseSFTConfig
    # Of TRL's trainer; replaced here.
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
        tokenizer = get_tokenizer(processing_class)
        processing_class = ChatTokenizer.protect(processing_class)
        if not formatting_func:
            dataset = unify_conversations(dataset, tokenizer, args)
            if args.fold_system_message:
                # TRL's, where that of the tokenizer does not say what the assistant writes.
                self.chat_template = fold_system_message(self.chat_template)
        # Where examples end is not to be seen any more once they are packed.
        rows = dataset
        if packing:
            # Older datasets refuse to take more rows than there are; a stream has no length.
            length = len(dataset) if isinstance(dataset, Sized) else _NUM_PACKED_CHECKED
            rows = dataset.take(min(length, _NUM_PACKED_CHECKED))
        with naming_template_errors(f"the {dataset_name} dataset"):
            rows = super()._prepare_dataset(
                rows, processing_class, without_limit(args), False, formatting_func, dataset_name
            )
        if dataset_name == "train":
            self._answer_ends = find_answer_ends(rows, "labels", tokenizer)
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
