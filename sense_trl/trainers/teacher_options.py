"""Options of trainers that learn from a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sense_trl.errors import InputError, check_at_least, check_positive
from sense_trl.losses.divergence import DIVERGENCES, Divergence, get_divergence
from sense_trl.options import option
from sense_trl.trainers.teachers.choice import TEACHER_SOURCES


@dataclass
class TeacherOptions:
    """Fields that name a teacher and a divergence; a base class in front of a trainer's config.

    The config's `__post_init__` calls `_check_teacher_options`.
    """

    teacher_model_name_or_path: str | None = option(
        "Folder or hub id of the teacher, where the trainer is given none.", default=None
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = option(
        "Keywords with which a teacher named by folder or id is loaded, e.g. {'dtype': "
        "'bfloat16'}, or {'quantization_config': {'load_in_4bit': true}}.",
        default=None,
    )
    teacher_adapter_name: str | None = option(
        "Adapter of the student's own PeftModel to teach with, instead of a model of its own: the "
        "base weights are in memory once.",
        default=None,
    )
    teacher_cache: str | None = option(
        "Folder of a teacher cache (`sense-trl teacher cache`), so that no teacher is in memory. "
        "It knows given answers only, none that are made during training.",
        default=None,
    )
    kd_loss_type: str = option(
        "Divergence of student and teacher at each token: adaptive_kl, forward_kl, "
        "generalized_jsd, reverse_kl, skew_kl, skew_reverse_kl, total_variation.",
        default="reverse_kl",
    )
    kd_loss_kwargs: dict[str, Any] | str | None = option(
        "Hyper-parameters of the divergence, e.g. {'beta': 0.5} for generalized_jsd or {'skew': "
        "0.1} for skew_kl. Left out, its defaults.",
        default=None,
    )
    kd_temperature: float = option(
        "The logits of both models are divided by it before they are compared. The divergence is "
        "not multiplied by its square.",
        default=1.0,
    )
    kd_weight: float = option(
        "Weight of the distillation term in the loss, at least 0.", default=1.0
    )

    def get_kd_divergence(self) -> Divergence:
        """The divergence that `kd_loss_type` and `kd_loss_kwargs` name, at temperature 1.

        A subclass of the config that overrides it trains with a divergence of its own: a function
        of the logits of student and teacher, `[C, V]` each, to `[C]`.

        Raises:
            InputError: there is no such divergence, or it has no such hyper-parameter.
        """
        if self.kd_loss_type not in DIVERGENCES:
            raise InputError(
                f"`kd_loss_type` is {self.kd_loss_type!r}; expected one of "
                f"{', '.join(DIVERGENCES)}. For one of your own override `get_kd_divergence` in a "
                "subclass of the config."
            )
        kwargs = self.kd_loss_kwargs or {}
        if not isinstance(kwargs, dict) or "temperature" in kwargs:
            raise InputError(
                f"`kd_loss_kwargs` is {kwargs!r}; expected hyper-parameters by name; the "
                "temperature is `kd_temperature`."
            )
        return get_divergence(self.kd_loss_type, **kwargs)

    def get_named_teachers(self) -> list[str]:
        """Those of the fields that name a teacher that are set."""
        return [name for name in TEACHER_SOURCES if getattr(self, name) is not None]

    def _check_teacher_options(self) -> None:
        for name in ("teacher_model_init_kwargs", "kd_loss_kwargs"):
            setattr(self, name, _parse_keywords(name, getattr(self, name)))
        self.get_kd_divergence()
        check_at_least(0, kd_weight=self.kd_weight)
        check_positive(kd_temperature=self.kd_temperature)
        named = self.get_named_teachers()
        if len(named) > 1:
            raise InputError(
                f"`{'` and `'.join(named)}` are set; expected one teacher. Leave all but one out."
            )
        if self.teacher_model_init_kwargs and {"teacher_adapter_name", "teacher_cache"} & {*named}:
            raise InputError(
                f"`teacher_model_init_kwargs` is {self.teacher_model_init_kwargs!r}, but with "
                f"`{named[0]}` no model is loaded. Leave one of them out."
            )


def _parse_keywords(name: str, value: Any) -> dict[str, Any] | None:
    """Keywords of an option, which a command line gives as JSON."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = value
    if not isinstance(found, dict | None):
        raise InputError(
            f"`{name}` is {value!r}; expected keywords by name, e.g. {{'dtype': 'bfloat16'}}; on a "
            "command line as JSON."
        )
    return found
