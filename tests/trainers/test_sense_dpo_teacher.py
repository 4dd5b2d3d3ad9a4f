"""A teacher on the chosen answers of preference training."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import (
    PAIRS,
    assert_same_weights,
    build_tiny_model,
    build_tiny_tokenizer,
    get_history,
)

from sense_trl.collators import PAIR_WEIGHT
from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer
from sense_trl.trainers.compat.deferred_metrics import read_metrics
from sense_trl.trainers.rows.token_rows import get_token_row
from sense_trl.trainers.teachers.cache_builder import build_teacher_cache

TOKENIZER = build_tiny_tokenizer()
WEIGHTED = [{**pair, "pair_weight": 1.0 + i % 3} for i, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("teacher"), "llama", seed=1)


def get_gradients(trainer, inputs):
    """Loss and gradients of one micro-batch."""
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }


def get_batch(trainer, count=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def get_expected_kd(trainer, teacher, batch, temperature):
    """The term from the full logits of both models, pair by pair."""
    losses = []
    for row in range(len(batch["input_ids"]) // 2):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row : row + 1, :length]
        mask = batch["completion_mask"][row, 1:length].bool()
        student = (trainer.model(ids).logits[0, :-1] / temperature).log_softmax(-1)[mask]
        with torch.no_grad():
            target = (teacher(ids).logits[0, :-1] / temperature).log_softmax(-1)[mask]
        losses.append((target.exp() * (target - student)).sum(-1).mean())
    losses = torch.stack(losses)
    return (losses * batch[PAIR_WEIGHT]).mean()


@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_term_is_that_of_full_logits(train, teacher_path, architecture, prefix_sharing):
    options = {
        "pairs": WEIGHTED,
        "architecture": architecture,
        "prefix_sharing": prefix_sharing,
        "start": False,
        "lora": False,
    }
    plain = train(**options)
    # A weight with which the term is not lost in the rounding of the others.
    trainer = train(
        **options, kd_weight=50.0, kd_temperature=2.0, teacher_model_name_or_path=teacher_path
    )
    batch = get_batch(trainer)
    loss, gradients = get_gradients(trainer, batch)
    plain_loss, plain_gradients = get_gradients(plain, get_batch(plain))

    plain.model.zero_grad()
    teacher = build_tiny_model("llama", seed=1).eval()
    expected = 50 * get_expected_kd(plain, teacher, batch, temperature=2.0)
    expected.backward()
    assert trainer.own_metrics["train"]["losses/kd"] == [
        pytest.approx(expected.item() / 50, rel=1e-4)
    ]
    torch.testing.assert_close(loss - plain_loss, expected.detach(), rtol=1e-4, atol=1e-6)
    for name, parameter in plain.model.named_parameters():
        found = gradients[name] - plain_gradients[name]
        assert (found - parameter.grad).norm() <= 1e-4 * parameter.grad.norm(), name
    # What is logged about the pairs is not touched.
    logged, of_plain = ({**t._metrics["train"], **t.own_metrics["train"]} for t in (trainer, plain))
    read_metrics(of_plain)
    read_metrics(logged)
    for name, values in of_plain.items():
        if not name.startswith("prefix_sharing"):
            assert logged[name] == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_accumulating_equals_one_batch(train, teacher_path):
    options = {
        "pairs": WEIGHTED,
        "kd_weight": 0.5,
        "teacher_model_name_or_path": teacher_path,
        "max_grad_norm": 0.0,
        "optim": "sgd",
    }
    whole = train(**options, per_device_train_batch_size=8)
    parts = train(**options, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    # Over the one step that both take with the same pairs, and the next ones.
    assert_same_weights(whole, parts, rtol=1e-5, atol=1e-7)
    # The second step starts from weights that are equal up to rounding.
    assert get_history(whole, "losses/kd") == pytest.approx(
        get_history(parts, "losses/kd"), rel=1e-5
    )


def test_a_cache_of_all_tokens_trains_as_its_teacher_does(train, teacher_path, tmp_path):
    rows = [get_token_row(pair, TOKENIZER) for pair in PAIRS]
    teacher = build_tiny_model("llama", seed=1)
    path = str(tmp_path / "cache")
    build_teacher_cache(path, teacher, TOKENIZER, rows, top_k=len(TOKENIZER))
    live = train(kd_weight=1.0, teacher_model_name_or_path=teacher_path)
    cached = train(kd_weight=1.0, teacher_cache=path)
    # 16-bit log-probabilities, and the few rows of the heads beyond the tokenizer's tokens.
    kd = get_history(live, "losses/kd")
    assert get_history(cached, "losses/kd") == pytest.approx(kd, rel=1e-2)
    few = str(tmp_path / "few")
    build_teacher_cache(few, teacher, TOKENIZER, rows, top_k=16)
    first = get_history(train(kd_weight=1.0, teacher_cache=few), "losses/kd")[0]
    assert 0 < first < kd[0]


def test_a_cache_without_a_chosen_answer_is_refused_before_training(train, tmp_path):
    path = str(tmp_path / "cache")
    rows = [get_token_row(pair, TOKENIZER) for pair in PAIRS]
    build_teacher_cache(path, build_tiny_model("llama", seed=1), TOKENIZER, rows[1:])
    message = r"1 of 8 answers of the train dataset are not among the 7 .* number 0"
    with pytest.raises(InputError, match=message):
        train(kd_weight=1.0, teacher_cache=path, start=False)
    build_teacher_cache(path, build_tiny_model("llama", seed=1), TOKENIZER, rows)
    other = [{**PAIRS[0], "chosen": "SELECT 1"}]
    with pytest.raises(InputError, match="1 of 1 answers of the eval dataset"):
        train(kd_weight=1.0, teacher_cache=path, eval_pairs=other, start=False)


# ----------------------------------------------------------------------------- adapters


def build_student(model_path):
    """A PeftModel with the adapters "default", which is trained, and "teacher"."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(type(build_tiny_model("llama")).from_pretrained(model_path), config)
    model.add_adapter("teacher", config)
    model.set_adapter("default")
    return model


@pytest.fixture
def build_trainer(model_paths, tmp_path):
    def run(**options):
        args = SenseDPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=True,
            report_to="none",
            disable_tqdm=True,
            teacher_adapter_name="teacher",
            dataloader_pin_memory=False,
            **{"kd_weight": 1.0, "max_steps": 3, "save_strategy": "no", **options},
        )
        return SenseDPOTrainer(
            model=build_student(model_paths["llama"]),
            args=args,
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=build_tiny_tokenizer(),
        )

    return run


def test_an_adapter_teaches_and_stays_as_it_is(build_trainer):
    trainer = build_trainer()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(".default." in name for name in changed)
    kd = get_history(trainer, "losses/kd")
    assert kd[0] > kd[-1] > 0


def test_the_teacher_s_adapter_is_not_saved_and_training_resumes(build_trainer, tmp_path):
    whole = build_trainer(save_strategy="steps", save_steps=2)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert [path for path in checkpoint.iterdir() if path.is_dir()] == []
    resumed = build_trainer()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(whole, resumed)
    whole.save_model(str(tmp_path / "final"))
    assert not [path for path in Path(tmp_path / "final").iterdir() if path.is_dir()]


# ------------------------------------------------------------------------------- options


def test_a_teacher_without_a_weight_and_a_weight_without_a_teacher_are_refused(train, model_paths):
    with pytest.raises(InputError, match="`teacher_cache` is set, but `kd_weight` is 0"):
        SenseDPOConfig(output_dir="out", use_cpu=True, bf16=False, teacher_cache="cache")
    with pytest.raises(InputError, match="Expected one teacher"):
        train(kd_weight=1.0, start=False)
    args = SenseDPOConfig(output_dir="out", use_cpu=True, bf16=False)
    with pytest.raises(InputError, match="`teacher_model` is given, but `kd_weight` is 0"):
        SenseDPOTrainer(model_paths["llama"], args=args, teacher_model=model_paths["llama"])
