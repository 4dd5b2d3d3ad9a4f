"""Configuration of `SenseGRPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig

from sense_trl.errors import InputError
from sense_trl.options import option, option_of
from sense_trl.trainers.compat.trl import use_current_checkpointing_names
from sense_trl.trainers.options import SharingOptions


@dataclass
class SenseGRPOConfig(SharingOptions, GRPOConfig):  # type: ignore[misc]
    """Options of `SenseGRPOTrainer`: those of `trl.GRPOConfig`, and sharing prefixes.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> config = SenseGRPOConfig(
        ...     output_dir="out", per_device_train_batch_size=8, num_generations=8, use_cpu=True
        ... )
        >>> config.loss_type, config.prefix_sharing, config.share_generation
        ('dapo', 'auto', True)
    """

    share_generation: bool = option(
        "Whether completions are written with shared prefixes: a prompt is read once for all of "
        "its completions, and a schema once for all questions on it. Where the options ask for "
        "what this decoder does not do (`top_k`, `min_p`, a `repetition_penalty`, "
        "`generation_kwargs`), or `prefix_sharing` is false, transformers writes them as TRL has "
        "it. With `use_vllm`, vLLM does.",
        default=True,
    )
    group_by_columns: list[str] | None = option_of(
        SharingOptions,
        "group_by_columns",
        note="Here examples are prompts; all completions of a prompt are in one group anyway.",
    )
    group_size: int | None = option(
        "How many prompts that agree in `group_by_columns` are drawn together; a divisor or a "
        "multiple of the prompts per generation (`generation_batch_size` / `num_generations`). As "
        "many as fit a micro-batch if not given.",
        default=None,
    )

    def __post_init__(self) -> None:
        self._check_options()
        use_current_checkpointing_names(self)
        super().__post_init__()
        if self.group_by_columns and not self.shuffle_dataset:
            raise InputError(
                f"`shuffle_dataset` is {self.shuffle_dataset!r}, but `group_by_columns` draws "
                "groups in a random order. Leave one of them out."
            )
        size, num_prompts = self.group_size, self.prompts_per_generation
        if size is not None and (size < 1 or (num_prompts % size and size % num_prompts)):
            raise InputError(
                f"`group_size` is {size!r}; expected a divisor or a multiple of the {num_prompts} "
                "prompts per generation (`generation_batch_size` / `num_generations`): other "
                "groups would end within another generation."
            )

    @property
    def prompts_per_generation(self) -> int:
        """Prompts that completions are written for at a time, all processes together."""
        return int(self.generation_batch_size // self.num_generations)

    @property
    def prompts_per_group(self) -> int:
        """Prompts that are drawn together: `group_size`, or those of a micro-batch."""
        whole, rest = divmod(self.per_device_train_batch_size, self.num_generations)
        return self.group_size or (whole if whole and not rest else 1)

    def _check_group_size(self) -> None:
        # The prompts of a generation are counted once TRL has resolved its options.
        if self.group_size is not None and not self.group_by_columns:
            raise InputError(
                f"`group_size` is {self.group_size!r}, but `group_by_columns` names no columns "
                "that a group agrees in. Set it, e.g. to ['db_id'], or leave `group_size` out."
            )
