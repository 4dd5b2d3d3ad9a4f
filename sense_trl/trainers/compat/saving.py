"""Saving of models whose weights are spread over processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sense_trl.errors import InputError


@contextlib.contextmanager
def saving_whole_models(trainer: Any) -> Iterator[None]:
    """Within the block, FSDP gathers what is saved: a model that `from_pretrained` reads.

    With `SHARDED_STATE_DICT`, which suits checkpoints to resume from, `Trainer.save_model` writes
    nothing at all.
    """
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is None:
        yield
        return
    before = plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config
    # What goes with another type is set anew only where nothing is set.
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config = before


def check_whole_models_can_be_saved(trainer: Any) -> None:
    """Refuse a training under ZeRO-3 whose model could not be written at its end.

    Raises:
        InputError: DeepSpeed is told not to gather the weights.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if not trainer.is_deepspeed_enabled or plugin is None or plugin.zero_stage != 3:
        return
    options = plugin.deepspeed_config.get("zero_optimization", {})
    name = "stage3_gather_16bit_weights_on_model_save"
    if not options.get(name, False):
        raise InputError(
            f"`{name}` is not true in the configuration of DeepSpeed: the trained model would be "
            "left in pieces that no next stage can read. Set it to true (`accelerate config` calls "
            "it `zero3_save_16bit_model`)."
        )
