"""Models whose weights are spread over processes, on their way to the disk."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin

from sense_trl.errors import InputError
from sense_trl.trainers.compat.saving import check_whole_models_can_be_saved, saving_whole_models


@pytest.mark.parametrize("version", [1, 2])
def test_fsdp_gathers_what_is_saved_and_nothing_else(version):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, state_dict_type="SHARDED_STATE_DICT"
    )
    before = plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    trainer = SimpleNamespace(is_fsdp_enabled=True, accelerator=accelerator)
    with pytest.raises(KeyError), saving_whole_models(trainer):
        # What transformers asks before it gathers.
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
        assert type(plugin.state_dict_config).__name__ == "FullStateDictConfig"
        raise KeyError
    after = plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config
    assert after == before


def test_without_fsdp_nothing_is_touched():
    with saving_whole_models(
        SimpleNamespace(is_fsdp_enabled=False, accelerator=SimpleNamespace(state=None))
    ):
        pass


def get_trainer(stage, **options):
    plugin = SimpleNamespace(
        zero_stage=stage, deepspeed_config={"zero_optimization": {"stage": stage, **options}}
    )
    return SimpleNamespace(
        is_deepspeed_enabled=True,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )


def test_zero_3_that_would_leave_the_weights_in_pieces_is_refused():
    name = "stage3_gather_16bit_weights_on_model_save"
    for options in ({}, {name: False}):
        with pytest.raises(InputError, match=f"`{name}` is not true"):
            check_whole_models_can_be_saved(get_trainer(3, **options))
    check_whole_models_can_be_saved(get_trainer(3, **{name: True}))
    check_whole_models_can_be_saved(get_trainer(2))


def test_a_trainer_has_what_is_read(train_sft):
    trainer = train_sft(start=False)
    assert not trainer.is_deepspeed_enabled
    assert not trainer.is_fsdp_enabled
    check_whole_models_can_be_saved(trainer)
