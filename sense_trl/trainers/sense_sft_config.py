"""Configuration of `SenseSFTTrainer`."""

from __future__ import annotations

from dataclasses import dataclass

from trl import SFTConfig

from sense_trl.errors import check_at_least
from sense_trl.options import option
from sense_trl.trainers.compat.trl import use_current_checkpointing_names
from sense_trl.trainers.options import SenseOptions


@dataclass
class SenseSFTConfig(SenseOptions, SFTConfig):  # type: ignore[misc]
    """Options of `SenseSFTTrainer`: those of `trl.SFTConfig`, and sharing prefixes.

    One of TRL's own fields differs: `max_length` defaults to 2048, and without `packing` an example
    that does not fit is never cut.

    Args:
        link_weight: weight of the loss of a schema linker whose head is trained along.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> config = SenseSFTConfig(output_dir="out", group_by_columns=["db_id"], use_cpu=True)
        >>> config.prefix_sharing
        'auto'
    """

    link_weight: float = option(
        "Weight of the loss of a schema linker that is trained along, and saved beside the model: "
        "`linker` takes the folder. 0 trains none.",
        default=0.0,
    )

    def __post_init__(self) -> None:
        check_at_least(0, link_weight=self.link_weight)
        self._check_options()
        use_current_checkpointing_names(self)
        super().__post_init__()
