"""Options that our trainers add to TRL's, whichever loss they train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sense_trl.errors import InputError, check_at_least
from sense_trl.model_traits import holds_adapter
from sense_trl.options import ChatTemplateOptions, option
from sense_trl.template_date import check_template_date

_PREFIX_SHARING = {"auto": "auto", "true": True, "false": False, True: True, False: False}


def get_checked_args(args: Any, model: Any, config_class: type[Any], name: str) -> Any:
    """The arguments of a trainer, its defaults if there are none.

    Args:
        args: what the trainer was given.
        model: folder, hub id or model, which names the default output folder.
        config_class: what `args` must be.
        name: ends the default output folder.

    Raises:
        InputError: `args` is something else, or `model` the folder of an adapter.
    """
    if isinstance(model, str) and holds_adapter(model):
        raise InputError(
            f"`model` is {model!r}, the folder of an adapter; expected one of a model. "
            f"`peft.AutoPeftModelForCausalLM.from_pretrained({model!r}, is_trainable=True)` is a "
            "model whose adapter is trained on; `sense-trl merge` makes a model of both."
        )
    if args is None:
        path = model if isinstance(model, str) else model.config.name_or_path
        return config_class(output_dir=f"{path.rstrip('/').split('/')[-1] or 'model'}-{name}")
    if not isinstance(args, config_class):
        theirs = config_class.__name__.removeprefix("Sense")
        raise InputError(
            f"`args` is a {type(args).__name__}; expected a {config_class.__name__}. It takes the "
            f"same options as trl.{theirs}."
        )
    return args


@dataclass
class SharingOptions(ChatTemplateOptions):
    """Fields of every config of ours; a base class in front of TRL's config."""

    # A string, because transformers' parser of command lines knows no `bool | str`.
    prefix_sharing: str = option(
        "Whether tokens that sequences of a batch have in common at their beginning (the prompt of "
        "two answers, the schema of several questions) are computed once. The values and gradients "
        "are the same up to rounding; with dropout, the shared part draws one mask. 'auto': where "
        "the model allows it, else the reason is logged; true: or training does not start; false: "
        "never. The metric `prefix_sharing/tokens_saved` is the share of the batch's positions "
        "that were not computed.",
        default="auto",
        choices=["auto", "true", "false"],
    )
    group_by_columns: list[str] | None = option(
        "Dataset columns whose equal values are drawn into the same batch of a device, the "
        "coarsest first, e.g. ['db_id', 'question_id'], so that there is more to share. Groups, "
        "examples within them and batches are shuffled. Left out, all examples are.",
        default=None,
    )
    group_size: int | None = option(
        "How many examples that agree in `group_by_columns` are drawn together; a divisor or a "
        "multiple of `per_device_train_batch_size`, which is the default. A smaller one mixes "
        "databases within a batch: 16 examples in groups of 4 read four schemas instead of one, "
        "and an optimizer step without accumulation learns from four databases. The metric "
        "`groups_per_step` counts them.",
        default=None,
    )
    adapter_dtype: str = option(
        "Type in which trainable adapter weights are stored. 'float32' keeps the small updates "
        "that TRL loses by casting the adapters of quantised models to bfloat16; 'auto' leaves "
        "them as TRL made them, which FSDP with quantised models needs.",
        default="float32",
        choices=["float32", "auto"],
    )

    def _check_options(self) -> None:
        if self.prefix_sharing not in _PREFIX_SHARING:
            raise InputError(
                f"`prefix_sharing` is {self.prefix_sharing!r}; expected 'auto', true or false."
            )
        self.prefix_sharing = _PREFIX_SHARING[self.prefix_sharing]  # type: ignore[assignment]
        if self.template_date is not None:
            check_template_date(self.template_date)
        columns = self.group_by_columns
        if columns is not None and not (isinstance(columns, list | tuple) and columns):
            raise InputError(
                f"`group_by_columns` is {columns!r}; expected a list of one column or more, e.g. "
                "['db_id'], or null for none."
            )
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            check_at_least(1, **{name: getattr(self, name)})
        self._check_group_size()
        if self.adapter_dtype not in ("float32", "auto"):
            raise InputError(
                f"`adapter_dtype` is {self.adapter_dtype!r}; expected 'float32' or 'auto'."
            )

    def _check_group_size(self) -> None:
        size, batch_size = self.group_size, self.per_device_train_batch_size  # type: ignore[attr-defined]
        if size is None:
            return
        if size < 1 or (batch_size % size and size % batch_size):
            raise InputError(
                f"`group_size` is {size!r}; expected a divisor or a multiple of "
                f"`per_device_train_batch_size`, {batch_size}: other groups would end within a "
                "batch of another."
            )
        if not self.group_by_columns:
            raise InputError(
                f"`group_size` is {size!r}, but `group_by_columns` names no columns that a group "
                "agrees in. Set it, e.g. to ['db_id'], or leave `group_size` out."
            )


@dataclass
class SenseOptions(SharingOptions):
    """Fields of `SenseSFTConfig` and `SenseDPOConfig`: those of configs whose data has answers."""

    max_length: int | None = option(
        "Longest prompt plus answer in tokens; null for no limit. A longer example is left out as "
        "`max_dropped_fraction` allows; nothing is ever cut. TRL's default of 1024 is less than "
        "many schemas.",
        default=2048,
    )
    max_dropped_fraction: float = option(
        "Largest share of the examples of a dataset that may be left out because they exceed "
        "`max_length`. With more, training does not start. The default, 0, leaves out nothing "
        "unasked.",
        default=0.0,
    )
    require_end_token: bool = option(
        "Whether training is refused where the answers end in no token that generation could stop "
        "at: the model would never learn to stop. Where they end in a special token that "
        "generation does not know, it is added to the model's end tokens either way.",
        default=True,
    )

    def _check_options(self) -> None:
        super()._check_options()
        if self.max_length is not None and self.max_length < 1:
            raise InputError(
                f"`max_length` is {self.max_length!r}; expected at least 1, or null for no limit."
            )
        if not 0.0 <= self.max_dropped_fraction < 1.0:
            raise InputError(
                f"`max_dropped_fraction` is {self.max_dropped_fraction!r}; expected a share in "
                "[0, 1)."
            )
