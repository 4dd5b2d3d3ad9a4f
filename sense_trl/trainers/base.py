"""Base of all of our trainers: models, samplers, rows and saving, whichever loss is trained."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any, ClassVar

from sense_trl.trainers.compat.deferred_metrics import DeferredMetrics
from sense_trl.trainers.compat.dropout import disable_functional_dropout
from sense_trl.trainers.compat.quantization import (
    disable_cpu_weight_repacking,
    get_float32_parameters,
    store_adapter_in_float32,
)
from sense_trl.trainers.compat.saving import saving_whole_models
from sense_trl.trainers.held_date import hold_template_date
from sense_trl.trainers.rows.answer_ends import AnswerEnds, ensure_answers_end
from sense_trl.trainers.rows.formats import prepare_chat_template, unify_rows
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sharing.grouped_sampler import GroupedSampler, get_grouped_sampler
from sense_trl.trainers.sharing.prefix_sharing import PrefixSharing
from sense_trl.trainers.teachers.teacher import saving_one_adapter


class SenseTrainer(DeferredMetrics):
    """Base of our trainers, in front of one of TRL's.

    A trainer of its own overrides `_wrap_collator` to add to batches, names the columns that it
    reads in `_own_columns`, and asks `prefix_sharing` for the tree of a batch.

    Args:
        model, args: as TRL's trainer takes them.
        options: all further arguments of TRL's trainer, by name.
    """

    _own_columns: ClassVar[tuple[str, ...]] = ()
    """Dataset columns that reach the collator besides those that TRL reads."""

    _answer_ends: AnswerEnds | None = None
    _grouped_sampler: GroupedSampler | None = None
    # Attributes of TRL's trainers that are read or replaced here.
    args: Any
    ref_model: Any = None
    data_collator: Any
    processing_class: Any
    _signature_columns: Any

    def __init__(self, *, model: Any, args: Any, **options: Any) -> None:
        float32_parameters = get_float32_parameters(model)
        super().__init__(model=model, args=args, **options)  # type: ignore[call-arg]
        if self._answer_ends is not None:
            ensure_answers_end(
                self._answer_ends,
                self.model,
                get_tokenizer(self.processing_class),
                is_required=args.require_end_token,
            )
        self._guard_quantized_models()
        if getattr(args, "disable_dropout", False):
            for each in (self.model, self.ref_model):
                if each is not None:
                    disable_functional_dropout(each)
        store_adapter_in_float32(self.model, args, float32_parameters)
        # Documented by TRL: the collator may be replaced once the trainer is built.
        self.data_collator = self._wrap_collator(self.data_collator)
        self._grouped_sampler = self._make_grouped_sampler()

    def _make_grouped_sampler(self) -> GroupedSampler | None:
        return get_grouped_sampler(self)

    @functools.cached_property
    def prefix_sharing(self) -> PrefixSharing:
        """Prefix sharing of this trainer; decided when it is first asked for."""
        return PrefixSharing(self)

    def _wrap_collator(self, collator: Any) -> Any:
        """Make the collator of this trainer from that of TRL's, or the user's."""
        return self.prefix_sharing.wrap_collator(collator)

    def _guard_quantized_models(self) -> None:
        for model in (self.model, self.ref_model):
            if model is not None:
                disable_cpu_weight_repacking(model)

    def _set_signature_columns_if_needed(self) -> None:
        # The Trainer removes every column that is not listed here.
        is_unset = self._signature_columns is None
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if is_unset:
            self._signature_columns += self._own_columns

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._grouped_sampler is not None:
            return self._grouped_sampler
        return super()._get_train_sampler(train_dataset)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a model that `from_pretrained` reads, whatever FSDP does with checkpoints.

        Of adapters, the one that is trained, without a teacher's.
        """
        teacher = getattr(self.args, "teacher_adapter_name", None)
        whole = contextlib.nullcontext() if _internal_call else saving_whole_models(self)
        with whole, saving_one_adapter(self.model, teacher):
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]


def without_limit(args: Any) -> Any:
    """The arguments of a trainer without `max_length`: TRL then neither filters rows nor cuts them.

    A shallow copy, because `dataclasses.replace` would run `__post_init__` again.
    """
    unlimited = copy.copy(args)
    unlimited.max_length = None
    return unlimited


def unify_conversations(dataset: Any, tokenizer: Any, args: Any) -> Any:
    """Make the rows all text, or messages that the tokenizer's chat template is ready for."""
    dataset = unify_rows(dataset)
    if prepare_chat_template(dataset, tokenizer, fold=args.fold_system_message):
        hold_template_date(args, tokenizer)
    return dataset
