"""Which teacher the options of a trainer give."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import VOCAB_SIZE, build_tiny_model, build_tiny_tokenizer

from sense_trl.errors import InputError, ModelError
from sense_trl.losses.divergence import forward_kl
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.teacher_options import TeacherOptions
from sense_trl.trainers.teachers import choice
from sense_trl.trainers.teachers.cache_builder import build_teacher_cache
from sense_trl.trainers.teachers.choice import get_teacher
from sense_trl.trainers.teachers.teacher import LiveTeacher

TREE = PrefixTree.from_sequences([[5, 6, 7, 8], [5, 6, 9]])


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("teacher"), "llama", seed=1)


def build_trainer(
    *, model=None, zero_stage=None, is_fsdp_enabled=False, rows=({"input_ids": [5]},), **options
):
    """What `get_teacher` reads of a trainer."""
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    return SimpleNamespace(
        model=build_tiny_model("llama") if model is None else model,
        args=TeacherOptions(**options),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            unwrap_model=lambda model: model,
            state=SimpleNamespace(deepspeed_plugin=plugin),
        ),
        processing_class=build_tiny_tokenizer(),
        is_fsdp_enabled=is_fsdp_enabled,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
    )


def get_values(teacher):
    logits = torch.zeros(len(TREE.target_ids), VOCAB_SIZE)
    return teacher.get_term(TREE, forward_kl)(logits, slice(None))


def test_a_teacher_is_named_loaded_or_given(teacher_path):
    options = {"teacher_model_name_or_path": teacher_path}
    values = [
        get_values(get_teacher(build_trainer(**options), None)),
        get_values(get_teacher(build_trainer(), teacher_path)),
        get_values(get_teacher(build_trainer(), build_tiny_model("llama", seed=1))),
    ]
    assert values[0].min() > 0
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    teacher = LiveTeacher(build_tiny_model("llama", seed=1))
    assert get_teacher(build_trainer(), teacher) is teacher


def test_a_teacher_may_be_held_in_4_bits(teacher_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    quantization = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
    trainer = build_trainer(teacher_model_init_kwargs={"quantization_config": quantization})
    teacher = get_teacher(trainer, teacher_path)
    before = teacher._base.model.layers[0].mlp.up_proj.weight.clone()
    values, again = get_values(teacher), get_values(teacher)
    whole = get_values(get_teacher(build_trainer(), teacher_path))
    assert torch.equal(values, again)
    torch.testing.assert_close(values, whole, rtol=0.5, atol=0.05)
    assert not torch.equal(values, whole)
    # bitsandbytes would repack them in place on some CPUs.
    assert torch.equal(before, teacher._base.model.layers[0].mlp.up_proj.weight)


def test_an_adapter_of_the_student_teaches():
    student = get_peft_model(build_tiny_model("llama"), LoraConfig(target_modules="all-linear"))
    student.add_adapter("teacher", LoraConfig(target_modules="all-linear"))
    trainer = build_trainer(model=student, teacher_adapter_name="teacher")
    assert get_values(get_teacher(trainer, None)).shape == TREE.target_ids.shape
    with pytest.raises(InputError, match=r"`teacher_adapter_name` is 'default', .* is trained"):
        get_teacher(build_trainer(model=student, teacher_adapter_name="default"), None)
    for how in ({"is_fsdp_enabled": True}, {"zero_stage": 3}):
        trainer = build_trainer(model=student, teacher_adapter_name="teacher", **how)
        with pytest.raises(InputError, match="shard the base model"):
            get_teacher(trainer, None)


def test_a_cache_teaches_if_it_fits(tmp_path):
    answers = [([5], [6, 7, 8]), ([5], [6, 9])]
    path = str(tmp_path / "cache")
    build_teacher_cache(path, build_tiny_model("llama", seed=1), build_tiny_tokenizer(), answers)
    rows = [
        {"input_ids": [*prompt, *answer], "labels": [-100, *answer], "prompt": "text"}
        for prompt, answer in answers
    ]
    options = {"teacher_cache": path, "rows": rows}
    tree = PrefixTree.from_sequences([row["input_ids"] for row in rows])
    term = get_teacher(build_trainer(**options), None).get_term(tree, forward_kl)
    assert term(torch.zeros(len(tree.target_ids), VOCAB_SIZE), slice(None)).min() > 0
    with pytest.raises(InputError, match=r"`temperature` is 2.0, .* made at 1.0"):
        get_teacher(build_trainer(**options, kd_temperature=2.0), None)
    trainer = build_trainer(**options)
    trainer.processing_class.add_tokens(["<added>"])
    with pytest.raises(InputError, match="is not the student's"):
        get_teacher(trainer, None)
    rows[1] = {**rows[1], "input_ids": [5, 6, 8]}
    with pytest.raises(InputError, match=r"1 of 2 answers of the train dataset .* number 1"):
        get_teacher(build_trainer(**options), None)


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({}, None, "None is given"),
        ({"teacher_adapter_name": "a"}, "b", "`teacher_adapter_name` and `teacher_model` are"),
    ],
)
def test_exactly_one_teacher_is_expected(options, model, message):
    with pytest.raises(InputError, match=message):
        get_teacher(build_trainer(**options), model)


def test_keywords_for_a_teacher_that_is_loaded_are_refused(teacher_path):
    trainer = build_trainer(teacher_model_init_kwargs={"dtype": "float32"})
    get_teacher(trainer, teacher_path)
    with pytest.raises(InputError, match="is loaded already"):
        get_teacher(trainer, build_tiny_model("llama"))


def test_a_folder_may_be_a_path(teacher_path):
    teachers = [get_teacher(build_trainer(), path) for path in (teacher_path, Path(teacher_path))]
    assert torch.equal(*map(get_values, teachers))


def test_a_keyword_that_no_model_takes_is_named(teacher_path):
    trainer = build_trainer(teacher_model_init_kwargs={"nonsense": 3})
    with pytest.raises(ModelError, match=r"'nonsense'.*`teacher_model_init_kwargs`"):
        get_teacher(trainer, teacher_path)


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere' cannot be loaded"):
        get_teacher(build_trainer(), str(tmp_path / "nowhere"))


def test_an_adapter_is_no_teacher_and_told_how_to_become_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError) as error:
        get_teacher(build_trainer(), str(tmp_path))
    for part in ("folder of an adapter", f"sense-trl merge {tmp_path}", "`teacher_cache`"):
        assert part in str(error.value)


def test_tokens_that_cannot_be_checked_are_said_or_refused(caplog):
    larger = build_tiny_model("llama")
    larger.resize_token_embeddings(VOCAB_SIZE + 64)
    with pytest.raises(InputError, match="448 rows and the student's 384"):
        get_teacher(build_trainer(), larger)
    with caplog.at_level(logging.WARNING):
        get_teacher(build_trainer(), build_tiny_model("llama"))
    assert "that its 384 tokens are the student's is not checked" in caplog.text


def test_a_teacher_with_other_tokens_is_refused(teacher_path):
    trainer = build_trainer()
    trainer.processing_class.add_tokens(["<added>"])
    with pytest.raises(InputError, match="'<added>'"):
        get_teacher(trainer, teacher_path)


def test_every_process_loads_the_whole_teacher(teacher_path, monkeypatch):
    """FSDP's economical loading would leave the weights of all processes but one empty."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    seen = []
    load = choice.create_model_from_path

    def record(path, **kwargs):
        seen.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])
        return load(path, **kwargs)

    monkeypatch.setattr(choice, "create_model_from_path", record)
    get_teacher(build_trainer(), teacher_path)
    assert seen == ["false"]
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
