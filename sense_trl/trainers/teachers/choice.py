"""The teacher that a trainer's options ask for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, Final

from datasets import Dataset
from transformers import AutoTokenizer

from sense_trl.errors import InputError, ModelError
from sense_trl.model_traits import holds_adapter
from sense_trl.trainers.compat.trl import create_model_from_path
from sense_trl.trainers.rows.token_rows import get_token_row, get_tokenizer
from sense_trl.trainers.sharing.heads import get_vocab_size
from sense_trl.trainers.teachers.cache import TeacherCache
from sense_trl.trainers.teachers.teacher import LiveTeacher, Teacher, check_vocabularies

logger = logging.getLogger(__name__)

TEACHER_SOURCES: Final = ("teacher_model_name_or_path", "teacher_adapter_name", "teacher_cache")
"""Options that name a teacher, of which one is set."""

# What TRL's trainers leave of preference data, and of other data.
_TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "input_ids", "labels")


def get_teacher(trainer: Any, teacher_model: Any) -> Teacher:
    """The teacher of a trainer, on the student's device and checked against its tokenizer.

    It is read, not prepared by accelerate, which would convert its outputs to float32: under DDP
    and FSDP every process holds it whole. An adapter cannot teach while FSDP or ZeRO-3 shard the
    base model that it shares with the student.

    Args:
        trainer: of TRL, once its constructor has run; its `model`, `args` (with `TeacherOptions`),
            `accelerator`, `processing_class` and datasets are read.
        teacher_model: a model, its folder or hub id, or a `Teacher`, which is returned; None for
            the one that `args` names.

    Raises:
        InputError: no teacher is named or more than one, its tokens are not the student's, it
            cannot be run under FSDP or ZeRO-3, or a cache does not fit the divergence or does not
            have the answers of a dataset.
        ModelError: it cannot be loaded.
    """
    args = trainer.args
    named = args.get_named_teachers()
    if teacher_model is not None:
        named.append("teacher_model")
    if len(named) != 1:
        found = f"`{'` and `'.join(named)}` are" if named else "None is"
        raise InputError(
            f"Expected one teacher. {found} given. Give the trainer a `teacher_model`, or set one "
            f"of {', '.join(f'`{name}`' for name in TEACHER_SOURCES)}."
        )
    student = trainer.accelerator.unwrap_model(trainer.model)
    if args.teacher_adapter_name is not None:
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise InputError(
                f"`teacher_adapter_name` is {args.teacher_adapter_name!r}, but FSDP and ZeRO-3 "
                "shard the base model, which a teacher's adapter shares with the student. Use a "
                "teacher cache or a teacher model of its own, or train with DDP."
            )
        teacher = LiveTeacher(student, adapter_name=args.teacher_adapter_name)
        if args.teacher_adapter_name in student.active_adapters:
            raise InputError(
                f"`teacher_adapter_name` is {args.teacher_adapter_name!r}, the adapter that is "
                "trained: it would learn from itself, which is nothing. Name another adapter of "
                "the model."
            )
        return teacher
    if args.teacher_cache is not None:
        cache = TeacherCache(args.teacher_cache)
        cache.check_tokenizer(get_tokenizer(trainer.processing_class), get_vocab_size(student))
        cache.check_comparison(args.get_kd_divergence(), args.kd_temperature)
        _check_answers(trainer, cache)
        return cache
    if teacher_model is None:
        teacher_model = args.teacher_model_name_or_path
    if hasattr(teacher_model, "get_term"):
        given: Teacher = teacher_model
        return given
    if isinstance(teacher_model, str | os.PathLike):
        path = os.fspath(teacher_model)
        teacher_model = _load_model(path, args.teacher_model_init_kwargs, trainer.accelerator)
    else:
        if args.teacher_model_init_kwargs:
            raise InputError(
                f"`teacher_model_init_kwargs` is {args.teacher_model_init_kwargs!r}, but the "
                "`teacher_model` is loaded already. Give its folder or hub id, or leave it out."
            )
        path = teacher_model.config.name_or_path
        _place(teacher_model, trainer.accelerator.device)
    size = _check_vocabulary(trainer, student, teacher_model, path)
    return LiveTeacher(teacher_model, vocab_size=size)


def _check_answers(trainer: Any, cache: TeacherCache) -> None:
    """Refuse a cache without some of the answers before anything is trained."""
    evaluation = trainer.eval_dataset
    evaluations = evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
    for name, dataset in {"train": trainer.train_dataset, **evaluations}.items():
        # A stream's answers are looked up as they come.
        if isinstance(dataset, Dataset):
            tokens = dataset.select_columns(
                [column for column in dataset.column_names if column in _TOKEN_COLUMNS]
            )
            rows = [get_token_row(row, None) for row in tokens]
            cache.check_rows(rows, f"the {name} dataset")


def _load_model(path: str, init_kwargs: Any, accelerator: Any) -> Any:
    if holds_adapter(path):
        raise InputError(
            f"The teacher {path!r} is the folder of an adapter; expected one of a model. Make it "
            f"one with `sense-trl merge {path} --output FOLDER` and name that; or leave what it "
            f"says in a cache, `sense-trl teacher cache --model_name_or_path {path}`, and "
            "set `teacher_cache`."
        )
    kwargs = {"dtype": "auto", **(init_kwargs or {})}
    # TRL would spread it over all devices of the machine, which other processes use as well.
    on_cpu = accelerator.device.type in ("cpu", "mps")
    kwargs.setdefault("device_map", None if on_cpu else {"": accelerator.device})
    try:
        with _load_whole():
            model = create_model_from_path(path, **kwargs)
    # A keyword that `from_pretrained` does not know is a TypeError.
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"The teacher {path!r} cannot be loaded ({error}). Expected the folder or hub id of a "
            "model, and in `teacher_model_init_kwargs` keywords of its `from_pretrained`."
        ) from error
    _place(model, accelerator.device)
    return model


@contextlib.contextmanager
def _load_whole() -> Iterator[None]:
    """Have every process read the weights, which FSDP's economical loading leaves to one."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _place(model: Any, device: Any) -> None:
    # What is quantised or spread over devices is where it was loaded to.
    if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
        model.to(device)


def _check_vocabulary(trainer: Any, student: Any, teacher: Any, path: str) -> int:
    sizes = (get_vocab_size(student), get_vocab_size(teacher))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path) if path else None
    except (OSError, ValueError):
        tokenizer = None
    if tokenizer is not None:
        return check_vocabularies(get_tokenizer(trainer.processing_class), tokenizer, sizes)
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher's head has {sizes[1]} rows and the student's {sizes[0]}, and there is no "
            f"tokenizer at {path!r} by which to tell whether they mean the same tokens. Give the "
            "teacher as a folder or hub id that has one."
        )
    logger.warning(
        "The teacher has no tokenizer at %r: that its %d tokens are the student's is not checked. "
        "Give it as a folder or hub id that has one.",
        path,
        sizes[1],
    )
    return sizes[0]
