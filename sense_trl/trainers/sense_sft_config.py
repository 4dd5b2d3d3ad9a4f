"""Configuration of `SenseSFTTrainer`."""

from __future__ import annotations

from dataclasses import dataclass

from trl import SFTConfig

from sense_trl.trainers.compat.trl import use_current_checkpointing_names
from sense_trl.trainers.options import SenseOptions


@dataclass
class SenseSFTConfig(SenseOptions, SFTConfig):  # type: ignore[misc]
    """Options of `SenseSFTTrainer`: those of `trl.SFTConfig`, and sharing prefixes.

    One of TRL's own fields differs: `max_length` defaults to 2048, and without `packing` an example
    that does not fit is never cut.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> config = SenseSFTConfig(output_dir="out", group_by_columns=["db_id"], use_cpu=True)
        >>> config.prefix_sharing
        'auto'
    """

    def __post_init__(self) -> None:
        self._check_options()
        use_current_checkpointing_names(self)
        super().__post_init__()
