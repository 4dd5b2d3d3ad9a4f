from __future__ import annotations

import logging
import math
import warnings
from dataclasses import fields

import pytest
from trl import DPOConfig, TrlParser

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig
from sense_trl.trainers.teacher_options import TeacherOptions


@pytest.fixture
def build(tmp_path):
    return lambda **options: SenseDPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, **options
    )


def test_defaults(build):
    config = build()
    assert config.loss_type == ["cdpo"]
    assert config.label_smoothing == 0.1
    assert config.beta == 0.1
    assert config.max_length == 2048
    assert config.max_dropped_fraction == 0.0


def test_every_field_of_ours_is_explained():
    inherited = {f.name: f.metadata.get("help") for f in fields(DPOConfig)}
    ours = [f for f in fields(SenseDPOConfig) if f.metadata.get("help") != inherited.get(f.name)]
    assert {f.name for f in ours} == {
        "loss_type",
        "label_smoothing",
        "dpop_lambda",
        "pair_weight_column",
        "pair_margin_column",
        "shared_prefix_as_prompt",
        "truncate_rejected_after",
        "adapter_dtype",
        "max_length",
        "max_dropped_fraction",
        "fold_system_message",
        "require_end_token",
        "template_date",
        "prefix_sharing",
        "group_by_columns",
        "group_size",
        "reference_cache",
        *(f.name for f in fields(TeacherOptions)),
    }
    assert all(f.metadata["help"].endswith(".") for f in ours)


def test_nothing_is_warned_about_that_the_user_did_not_set(build):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default = build()
        off = build(gradient_checkpointing=False)
    assert default.gradient_checkpointing is True  # TRL's default
    assert off.gradient_checkpointing is False
    if hasattr(default, "activation_checkpointing"):
        assert build(activation_checkpointing=False).gradient_checkpointing is False


@pytest.mark.parametrize(
    "loss_type, label_smoothing",
    [("cdpo", 0.1), (["cdpo", "sft"], 0.1), ("sigmoid", 0.0), ("dpop", 0.0), ("robust", 0.0)],
)
def test_label_smoothing_follows_the_loss_when_left_out(build, loss_type, label_smoothing):
    assert build(loss_type=loss_type).label_smoothing == label_smoothing


def test_label_smoothing_of_zero_is_kept(build):
    assert build(loss_type="cdpo", label_smoothing=0.0).label_smoothing == 0.0


@pytest.mark.parametrize("loss_type", ["sigmoid", "dpop", "ipo", "sft"])
def test_label_smoothing_that_no_loss_uses_is_refused(build, loss_type):
    with pytest.raises(InputError, match=f"`label_smoothing` is 0.1.*{loss_type}.*'cdpo'"):
        build(loss_type=loss_type, label_smoothing=0.1)


def test_label_smoothing_that_one_of_two_losses_uses_is_said(build, caplog):
    build(loss_type=["cdpo", "hinge", "sft"], label_smoothing=0.1)
    assert "is used by cdpo and ignored by hinge." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build(loss_type=["cdpo", "sft"], label_smoothing=0.1)
    assert not caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "cdop"},
        {"loss_type": []},
        {"loss_type": ["cdpo", "sft"], "loss_weights": [1.0]},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"dpop_lambda": -1.0},
        {"truncate_rejected_after": 0},
        {"truncate_rejected_after": True},
        {"dpop_lambda": math.nan},
        {"adapter_dtype": "float16"},
        {"max_length": -1},
        {"max_length": 0},
        {"max_dropped_fraction": 1.0},
        {"max_dropped_fraction": -0.1},
        {"label_smoothing_factor": 0.1},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"f_divergence_type": "js_divergence"},
    ],
    ids=str,
)
def test_unusable_options_are_refused_by_name(build, options):
    with pytest.raises(ValueError, match=f"`{next(reversed(options))}`"):
        build(**options)


def test_options_of_trl_s_losses_stay_available(build):
    assert (
        build(loss_type="sigmoid", ld_alpha=0.5, f_divergence_type="js_divergence").ld_alpha == 0.5
    )


def parse(tmp_path, text, *arguments):
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\n{text}")
    parser = TrlParser(SenseDPOConfig)
    (config,) = parser.parse_args_and_config(["--config", str(path), *arguments])
    return config


def test_yaml(tmp_path):
    config = parse(
        tmp_path,
        "loss_type: [cdpo, sft]\nloss_weights: [1.0, 0.5]\nlearning_rate: 5e-6\n"
        "pair_weight_column: null\nmax_length: 4096\nmodel_init_kwargs: {dtype: bfloat16}\n",
    )
    assert config.loss_type == ["cdpo", "sft"]
    assert config.loss_weights == [1.0, 0.5]
    assert config.learning_rate == 5e-6
    assert config.label_smoothing == 0.1
    assert config.pair_weight_column is None
    assert config.max_length == 4096
    assert config.model_init_kwargs == {"dtype": "bfloat16"}


def test_a_single_loss_and_the_command_line(tmp_path):
    assert parse(tmp_path, "loss_type: dpop\n").loss_type == ["dpop"]
    config = parse(tmp_path, "loss_type: dpop\n", "--loss_type", "cdpo", "sft")
    assert config.loss_type == ["cdpo", "sft"]
    assert parse(tmp_path, "", "--label_smoothing", "0.2").label_smoothing == 0.2


def test_an_unknown_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smothing"):
        parse(tmp_path, "label_smothing: 0.2\n")
