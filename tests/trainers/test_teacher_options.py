"""Options that name a teacher and a divergence: which are read, and which refused."""

from __future__ import annotations

import pytest
import torch
from trl import TrlParser

from sense_trl.errors import InputError
from sense_trl.losses.divergence import skew_kl
from sense_trl.trainers import KIDConfig, SenseDPOConfig
from sense_trl.trainers.teacher_options import TeacherOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kd_weight": -1.0}, "`kd_weight` is -1.0"),
        ({"kd_temperature": 0.0}, "`kd_temperature` is 0.0"),
        ({"kd_loss_type": "kl"}, "'kl'"),
        ({"kd_loss_kwargs": {"temperature": 2.0}}, "`kd_temperature`"),
        (
            {"teacher_model_name_or_path": "a", "teacher_adapter_name": "b"},
            "`teacher_model_name_or_path` and `teacher_adapter_name` are set",
        ),
        ({"teacher_model_init_kwargs": "bfloat16"}, "`teacher_model_init_kwargs` is 'bfloat16'"),
        ({"kd_loss_kwargs": '{"skew": 0.3'}, "`kd_loss_kwargs` is '{\"skew\": 0.3'; .* as JSON"),
        ({"kd_loss_kwargs": "[1]"}, "`kd_loss_kwargs` is '.1.'; expected keywords by name"),
        (
            {"teacher_model_init_kwargs": {"dtype": "auto"}, "teacher_cache": "c"},
            "with `teacher_cache` no model is loaded",
        ),
    ],
)
def test_options_that_are_wrong_or_ignored_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TeacherOptions(**options)._check_teacher_options()


@pytest.mark.parametrize("config_class", [KIDConfig, SenseDPOConfig])
def test_keywords_come_as_json_from_a_command_line(tmp_path, config_class):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--kd_weight", "2"]
    arguments += ["--kd_loss_type", "skew_kl", "--kd_loss_kwargs", '{"skew": 0.2}']
    arguments += ["--teacher_model_name_or_path", "x"]
    arguments += ["--teacher_model_init_kwargs", '{"quantization_config": {"load_in_4bit": true}}']
    (config,) = TrlParser(config_class).parse_args_and_config(arguments)
    assert config.kd_loss_kwargs == {"skew": 0.2}
    assert config.teacher_model_init_kwargs == {"quantization_config": {"load_in_4bit": True}}


def test_a_divergence_has_its_hyperparameters():
    options = TeacherOptions(kd_loss_type="skew_kl", kd_loss_kwargs={"skew": 0.3})
    student, teacher = torch.randn(2, 4, 5)
    expected = skew_kl(student, teacher, skew=0.3)
    assert torch.equal(options.get_kd_divergence()(student, teacher), expected)
