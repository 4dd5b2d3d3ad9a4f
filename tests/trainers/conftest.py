"""A trainer on a tiny model, ready in a fraction of a second."""

from __future__ import annotations

import pytest
import tiny_models
from datasets import Dataset
from peft import LoraConfig
from tiny_models import OPTIONS, PAIRS, QUESTIONS
from trl import DPOConfig, SFTConfig

from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer, SenseSFTConfig, SenseSFTTrainer


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save_tiny_model(folder, name) for name in tiny_models.ARCHITECTURES}


def get_defaults(folder):
    """Options of a short run."""
    return {"output_dir": str(folder / "out"), **OPTIONS}


def get_adapter(lora):
    """A config of PEFT is taken as it is."""
    return LoraConfig(r=4, target_modules="all-linear") if lora is True else lora or None


@pytest.fixture
def train(model_paths, tmp_path):
    """Builds and trains a trainer; keywords are options of the config."""

    def run(
        loss_type=None,
        *,
        pairs=PAIRS,
        architecture="llama",
        lora=True,
        trainer_class=SenseDPOTrainer,
        config_class=None,
        resume_from=None,
        eval_pairs=None,
        start=True,
        ref_model=None,
        **options,
    ):
        defaults = get_defaults(tmp_path)
        if loss_type is not None:
            defaults["loss_type"] = loss_type
        if config_class is None:
            config_class = SenseDPOConfig if trainer_class is SenseDPOTrainer else DPOConfig
        trainer = trainer_class(
            model=model_paths[architecture],
            ref_model=ref_model,
            args=config_class(**{**defaults, **options}),
            train_dataset=Dataset.from_list(pairs) if isinstance(pairs, list) else pairs,
            eval_dataset=None if eval_pairs is None else Dataset.from_list(eval_pairs),
            peft_config=get_adapter(lora),
        )
        if start:
            trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return run


@pytest.fixture
def train_sft(model_paths, tmp_path):
    """The same for supervised fine-tuning."""

    def run(
        *,
        rows=QUESTIONS,
        architecture="llama",
        model=None,
        lora=True,
        trainer_class=SenseSFTTrainer,
        resume_from=None,
        eval_rows=None,
        start=True,
        **options,
    ):
        config_class = SenseSFTConfig if trainer_class is SenseSFTTrainer else SFTConfig
        trainer = trainer_class(
            model=model_paths[architecture] if model is None else model,
            args=config_class(**{**get_defaults(tmp_path), **options}),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
            processing_class=tiny_models.build_tiny_tokenizer(),
            peft_config=get_adapter(lora),
        )
        if start:
            trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return run
