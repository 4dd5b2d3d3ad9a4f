"""Supervised fine-tuning on TRL's `SFTTrainer` that reads every schema once per batch."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from sense_trl.collators import LINKED_TEXTS, PREFIX_TREE, DataCollatorForLinkedTexts
from sense_trl.trainers.linking.joint import JointLinking
from sense_trl.trainers.sft_base import BaseSFTTrainer


class SenseSFTTrainer(BaseSFTTrainer):
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
    * With `link_weight` the head of a schema linker learns from the column `linked_texts` in the
      same forward pass, on states of the model, which learns from its loss, too (`losses/link`); it
      is saved beside the model and every checkpoint. `sense-trl sft` makes the column.
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
    _own_columns = (LINKED_TEXTS,)

    linking: JointLinking | None = None
    """The linker that is trained along."""

    def _wrap_collator(self, collator: Any) -> Any:
        if self.args.link_weight:
            self.linking = JointLinking(self)
            collator = DataCollatorForLinkedTexts(collator)
        return super()._wrap_collator(collator)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        dataset = super()._remove_unused_columns(dataset, description)
        if str(description).lower() != "training" and LINKED_TEXTS in dataset.column_names:
            # Nothing learns from them there.
            dataset = dataset.remove_columns(LINKED_TEXTS)
        return dataset

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        """TRL's, with the head of the linker."""
        optimizer = super().create_optimizer(*args, **options)
        if self.linking is not None:
            self.linking.start(optimizer)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's, with the head of the linker."""
        super().save_model(output_dir, _internal_call)
        if self.linking is not None and self.args.should_save:
            self.linking.save(output_dir or self.args.output_dir)

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        """TRL's, with the head of the linker."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if self.linking is not None and folder:
            self.linking.load(folder)
        return super().train(resume_from_checkpoint, **options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss of one micro-batch, from its prefix tree where prefixes are shared."""
        linked = inputs.get(LINKED_TEXTS)
        inputs = {key: value for key, value in inputs.items() if key != LINKED_TEXTS}
        inputs = self.prefix_sharing.add_tree(inputs)
        tree = inputs.get(PREFIX_TREE)
        self.prefix_sharing.log_tokens(inputs["input_ids"], tree)
        if self.linking is None or linked is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.linking.reading() as states:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        own = self.linking.get_loss(states[0], linked.texts, tree)
        self._add_metric("losses/link", own)
        # A mean over the micro-batch, which `Trainer` divides only where no tokens are counted.
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = loss + self.args.link_weight * own.to(loss.device) / steps
        return (loss, *outputs) if return_outputs else loss
