"""Trainings and caches under a chat template that writes today's date."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from datasets import Dataset
from tiny_models import OPTIONS, build_tiny_model, build_tiny_tokenizer
from transformers.utils import chat_template_utils

from sense_trl.checkpoints.starting_model import StartingModel
from sense_trl.errors import InputError
from sense_trl.steps.teacher import cache_teacher
from sense_trl.steps.training import train_model
from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
    held_date,
)

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

QUESTION = [{"role": "user", "content": "How many singers are there?"}]
ROWS = [
    {"prompt": QUESTION, "completion": [{"role": "assistant", "content": answer}]}
    for answer in ("SELECT COUNT(*) FROM singer", "SELECT 1")
]
PAIR = {
    "prompt": QUESTION,
    "chosen": ROWS[0]["completion"],
    "rejected": ROWS[1]["completion"],
}


@pytest.fixture
def set_today(monkeypatch):
    """Lets templates and us live on another day."""

    def set_day(day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromisoformat(day)

            @classmethod
            def today(cls):
                return cls.fromisoformat(day).date()

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(held_date, "date", Clock)
        monkeypatch.setattr("sense_trl.steps.teacher.date", Clock)

    return set_day


@pytest.fixture
def folder(tmp_path):
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    path = tmp_path / "model"
    build_tiny_model("llama").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def build(folder, trainer_class, config_class, rows, **options):
    options = {**OPTIONS, "output_dir": str(folder.parent / "out"), **options}
    extra = {}
    if trainer_class is KIDTrainer and "teacher_cache" not in options:
        extra["teacher_model"] = build_tiny_model("llama", seed=1)
    return trainer_class(
        model=str(folder),
        args=config_class(**options),
        train_dataset=Dataset.from_list(rows),
        **extra,
    )


KINDS = {
    "sft": (SenseSFTTrainer, SenseSFTConfig, ROWS),
    "dpo": (SenseDPOTrainer, SenseDPOConfig, [PAIR]),
    "kid": (KIDTrainer, KIDConfig, ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_day_that_is_given_has_the_same_tokens_on_any_day(folder, set_today, caplog, kind):
    column = "prompt_ids" if kind == "dpo" else "input_ids"

    def get_tokens(today, **options):
        set_today(today)
        trainer = build(folder, *KINDS[kind], **options)
        assert trainer.args.template_date is not None
        return trainer.processing_class.decode(trainer.train_dataset[0][column])

    first = get_tokens("2026-11-28")
    assert first.startswith("Today: 28 Nov 2026")
    assert "All rows are written as on 2026-11-28" in caplog.text
    assert get_tokens("2026-11-29").startswith("Today: 29 Nov 2026")
    assert get_tokens("2026-11-29", template_date="2026-11-28") == first


def test_a_run_that_is_resumed_keeps_its_day(folder, set_today):
    def run(today):
        set_today(today)
        start = StartingModel(
            build_tiny_model("llama"), type(build_tiny_tokenizer()).from_pretrained(folder), None
        )
        config = SenseSFTConfig(**{**OPTIONS, "output_dir": str(folder.parent / "run")})
        train_model(start, Dataset.from_list(ROWS), config)
        return config.template_date

    assert run("2026-11-28") == "2026-11-28"
    assert run("2026-11-29") == "2026-11-28"


def test_a_cache_of_yesterday_teaches_today(folder, set_today, tmp_path):
    cache = tmp_path / "cache"
    set_today("2026-11-28")
    cache_teacher(str(folder), ROWS[:1], cache)
    assert json.loads((cache / "cache.json").read_text())["template_date"] == "2026-11-28"
    set_today("2026-11-29")
    assert len(cache_teacher(str(folder), ROWS, cache)) == 2
    options = {"teacher_cache": str(cache), "imperfect_data": False, "kd_loss_type": "forward_kl"}
    trainer = build(folder, *KINDS["kid"], **options)
    assert trainer.args.template_date == "2026-11-28"
    with pytest.raises(InputError, match="`template_date` is '2026-11-29', but the prompts"):
        build(folder, *KINDS["kid"], **options, template_date="2026-11-29")
    with pytest.raises(InputError, match="template_date was '2026-11-28', now '2026-11-29'"):
        cache_teacher(str(folder), ROWS, cache, template_date="2026-11-29")


def test_a_template_without_a_date_is_told_none(train_sft, caplog):
    assert train_sft(start=False).args.template_date is None
    assert "writes the date" not in caplog.text
