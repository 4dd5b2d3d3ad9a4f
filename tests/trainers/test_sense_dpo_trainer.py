"""Losses, references, weights and resuming of `SenseDPOTrainer`, compared with TRL's trainer."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import PAIRS, assert_same_weights, get_comparable_logs, get_history
from transformers import BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOTrainer

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


# ------------------------------------------------------------------------- equality with TRL


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_trl_losses_without_weights_equal_trl_bit_for_bit(train, architecture, lora):
    ours, trls = (
        train(
            ["sigmoid"],
            trainer_class=trainer_class,
            architecture=architecture,
            lora=lora,
            eval_pairs=PAIRS[:3],
            eval_strategy="steps",
            eval_steps=1,
            **without_sharing,
        )
        for trainer_class, without_sharing in (
            (SenseDPOTrainer, {"prefix_sharing": False}),
            (DPOTrainer, {}),
        )
    )
    assert_same_weights(ours, trls)
    assert get_comparable_logs(ours) == get_comparable_logs(trls)
    assert "eval_rewards/margins" in ours.state.log_history[1]


@pytest.mark.parametrize("loss_type", [["sigmoid"], ["sigmoid", "sft"]])
def test_weights_of_one_equal_no_weights_bit_for_bit(train, loss_type):
    weighted = train(
        loss_type, pairs=[{**pair, "pair_weight": 1.0} for pair in PAIRS], prefix_sharing=False
    )
    plain = train(loss_type, trainer_class=DPOTrainer)
    if loss_type == ["sigmoid"]:
        assert_same_weights(weighted, plain)
        assert get_history(weighted, "loss") == get_history(plain, "loss")
    else:  # the mean over tokens is summed in another order
        assert_same_weights(weighted, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
def test_cdpo_equals_trl_s_robust_loss_at_negative_smoothing(train, epsilon, caplog):
    cdpo = train(["cdpo"], label_smoothing=epsilon)
    robust = train(
        ["robust"], trainer_class=DPOTrainer, label_smoothing=-epsilon / (1 - 2 * epsilon)
    )
    assert_same_weights(cdpo, robust, rtol=1e-4, atol=1e-6)
    for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy", "num_tokens"):
        torch.testing.assert_close(
            get_history(cdpo, key), get_history(robust, key), rtol=1e-4, atol=1e-6
        )


def test_every_metric_of_trl_is_kept(train):
    sense = train(
        ["cdpo", "dpop", "sft"], eval_pairs=PAIRS[:2], eval_strategy="steps", eval_steps=1
    )
    trl = train(
        ["sigmoid"],
        trainer_class=DPOTrainer,
        eval_pairs=PAIRS[:2],
        eval_strategy="steps",
        eval_steps=1,
    )
    for ours, theirs in zip(sense.state.log_history, trl.state.log_history, strict=True):
        assert ours.keys() - theirs.keys() <= {
            f"{prefix}{name}"
            for prefix in ("", "eval_")
            for name in (
                "losses/cdpo",
                "losses/dpop",
                "prefix_sharing/tokens_computed",
                "prefix_sharing/tokens_saved",
            )
        }
        assert theirs.keys() <= ours.keys()


def test_a_list_adds_the_losses_with_their_weights(train):
    logs = train(
        ["cdpo", "sft", "dpop"], loss_weights=[1.0, 0.5, 0.25], max_steps=1
    ).state.log_history[0]
    sft = train(["sft"], trainer_class=DPOTrainer, max_steps=1).state.log_history[0]["loss"]
    expected = logs["losses/cdpo"] + 0.5 * sft + 0.25 * logs["losses/dpop"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    # Policy and reference agree at the first step, so both preference terms are ln 2.
    assert logs["losses/cdpo"] == pytest.approx(math.log(2), rel=1e-5)
    assert logs["losses/dpop"] == pytest.approx(math.log(2), rel=1e-5)


# --------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_cdpo_training_lowers_the_loss_and_raises_the_margin(train, architecture, lora):
    trainer = train(
        ["cdpo"], architecture=architecture, lora=lora, max_steps=20, learning_rate=5e-3, beta=0.5
    )
    losses, margins = get_history(trainer, "loss"), get_history(trainer, "rewards/margins")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4)
    assert losses[-1] < 0.5
    assert margins[-1] > 1.0
    assert all(math.isfinite(value) for value in losses + margins)


def test_dpop_keeps_the_chosen_answer_as_likely_as_the_reference(train):
    options = {"max_steps": 15, "learning_rate": 5e-3, "per_device_train_batch_size": 8}
    # One token apart: DPO alone is free to make both answers less likely.
    pairs = [{**p, "rejected": p["chosen"].replace("COUNT", "SUM")} for p in PAIRS]
    dpop = train(["dpop"], pairs=pairs, **options)
    assert get_history(dpop, "rewards/margins")[-1] > 0.05
    # `rewards/chosen` is beta times the log-ratio: -0.1 is one nat below the reference.
    assert min(get_history(dpop, "rewards/chosen")[5:]) > -0.1


# ----------------------------------------------------------------- batches, weights, resuming


def test_one_batch_of_eight_equals_eight_batches_of_one(train):
    large, small = (
        train(
            ["cdpo"],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=3,
            pairs=[{**pair, "pair_weight": 1.0 + i % 3} for i, pair in enumerate(PAIRS)],
        )
        for size in (8, 1)
    )
    assert_same_weights(large, small, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        get_history(large, "loss"), get_history(small, "loss"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss_type", ["sigmoid", "cdpo", "dpop"])
def test_a_weight_of_two_equals_the_pair_twice(train, loss_type):
    weighted = [{**pair, "pair_weight": 2.0 if i == 0 else 1.0} for i, pair in enumerate(PAIRS[:3])]
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    first = train([loss_type], pairs=weighted, per_device_train_batch_size=3, **options)
    second = train(
        [loss_type], pairs=[PAIRS[0], *PAIRS[:3]], per_device_train_batch_size=4, **options
    )
    third = train([loss_type], pairs=PAIRS[:3], per_device_train_batch_size=3, **options)
    assert_same_weights(first, second, rtol=1e-4, atol=1e-6)
    assert get_history(first, "loss")[1] != pytest.approx(get_history(third, "loss")[1], rel=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "cdpo", "dpop"])
def test_a_target_margin_is_subtracted_from_the_margin_of_its_pair(train, loss_type):
    margins = [0.0, 1.5]
    pairs = [{**pair, "pair_margin": m} for pair, m in zip(PAIRS[:2], margins, strict=True)]
    trainer = train([loss_type, "sft"], pairs=pairs, loss_weights=[1.0, 0.0], start=False)
    # Policy and reference agree before training, so x is 0 for every pair.
    eps = trainer.args.label_smoothing
    for row, margin in zip(trainer.train_dataset, margins, strict=True):
        loss = trainer.compute_loss(trainer.model, trainer.data_collator([row])).item()
        expected = math.log1p(math.exp(margin)) - eps * margin
        assert loss == pytest.approx(expected, rel=1e-4)


def test_a_margin_of_zero_changes_nothing(train):
    plain = train(["cdpo"])
    zero = train(["cdpo"], pairs=[{**pair, "pair_margin": 0.0} for pair in PAIRS])
    assert_same_weights(plain, zero)


def test_weights_count_in_the_sft_term_of_a_single_pair(train):
    pairs = [{**PAIRS[0], "pair_weight": 3.0}, {**PAIRS[1], "pair_weight": 1.0}]
    trainer = train(["sft"], pairs=pairs, max_steps=1, per_device_train_batch_size=2, start=False)
    losses = [
        trainer.compute_loss(
            trainer.model, trainer.data_collator([trainer.train_dataset[i]])
        ).item()
        for i in range(2)
    ]
    plain = train(["sft"], pairs=PAIRS[:2], trainer_class=DPOTrainer, start=False)
    expected = [
        plain.compute_loss(plain.model, plain.data_collator([plain.train_dataset[i]])).item()
        for i in range(2)
    ]
    assert losses == pytest.approx([1.5 * expected[0], 0.5 * expected[1]], rel=1e-5)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_resumed_run_ends_with_the_same_weights(train, tmp_path, lora):
    options = {
        "lora": lora,
        "pairs": [{**pair, "pair_weight": 1.0 + i} for i, pair in enumerate(PAIRS)],
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = train(["cdpo", "sft"], output_dir=str(tmp_path / "whole"), **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = train(
        ["cdpo", "sft"], output_dir=str(tmp_path / "resumed"), resume_from=checkpoint, **options
    )
    assert_same_weights(whole, resumed)
    assert get_history(whole, "loss") == get_history(resumed, "loss")


# ------------------------------------------------------------------------------- references


def test_all_references_agree(train, model_paths):
    disabled_adapter = train(["cdpo"])
    precomputed = train(["cdpo"], precompute_ref_log_probs=True)
    explicit = train(["cdpo"], ref_model=tiny_models.build_tiny_model("llama"))
    assert_same_weights(disabled_adapter, precomputed, rtol=1e-4, atol=1e-6)
    assert_same_weights(disabled_adapter, explicit, rtol=1e-4, atol=1e-6)


def test_precomputing_works_with_weights_and_again_at_evaluation(train):
    pairs = [{**pair, "pair_weight": 1.0 + i} for i, pair in enumerate(PAIRS)]
    options = {"pairs": pairs, "eval_pairs": pairs[:4]}
    live = train(["cdpo"], **options)
    precomputed = train(["cdpo"], precompute_ref_log_probs=True, **options)
    expected = live.evaluate()["eval_loss"]
    assert precomputed.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    # TRL's own trainer fails here on duplicated columns.
    again = precomputed.evaluate(precomputed.eval_dataset)
    assert again["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_policy_and_reference_each_run_once(train):
    trainer = train(["cdpo"], ref_model=tiny_models.build_tiny_model("llama"), start=False)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    calls = []
    trainer.ref_model.register_forward_hook(lambda *_: calls.append("reference"))
    trainer.model.register_forward_hook(lambda *_: calls.append("policy"))
    trainer.compute_loss(trainer.model, batch)
    assert sorted(calls) == ["policy", "reference"]


def test_weights_never_reach_the_model(train):
    trainer = train(["cdpo"], pairs=[{**pair, "pair_weight": 1.0} for pair in PAIRS], start=False)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert "pair_weight" in batch
    seen = []

    def model(**kwargs):
        seen.extend(kwargs)
        return trainer.model(**kwargs)

    trainer.compute_loss(model, batch)
    trainer.compute_ref_log_probs(model, batch)
    assert "input_ids" in seen
    assert "pair_weight" not in seen
    assert "pair_weight" in batch  # the caller's batch is not changed


def test_the_adapter_is_back_after_the_reference_was_computed(train):
    trainer = train(["cdpo"], max_steps=3)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() != pytest.approx(math.log(2), abs=1e-6)


# ------------------------------------------------------------------------------- arguments


def test_a_trl_config_is_refused(model_paths, tmp_path):
    with pytest.raises(InputError, match="`args` is a DPOConfig"):
        SenseDPOTrainer(
            model_paths["llama"], args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
        )


def test_the_name_of_a_reference_is_told_to_be_a_model(train, model_paths):
    with pytest.raises(InputError, match=r"`ref_model` is '.*llama'; expected a model"):
        train(["cdpo"], ref_model=model_paths["llama"])


def test_the_loss_of_the_documentation_trains(train):
    page = Path(__file__).resolve().parents[2] / "docs" / "subclass.md"
    text = page.read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Capped" in block
    ]
    names: dict = {}
    # The page goes on to train; the classes are enough here.
    exec(code.split("\nargs = ")[0], names)
    options = {"config_class": names["CappedConfig"], "trainer_class": names["CappedTrainer"]}
    trainer = train(["capped", "sft"], **options)
    # Policy and reference agree at first.
    assert get_history(trainer, "losses/capped")[0] == pytest.approx(5.0, abs=1e-4)
    assert get_history(trainer, "losses/capped")[-1] < 5.0
    assert min(get_history(trainer, "prefix_sharing/tokens_saved")) > 0
    weighted = [{**PAIRS[0], "pair_weight": 3.0}, {**PAIRS[1], "pair_weight": 1.0}]
    trainer = train(["capped"], pairs=weighted, per_device_train_batch_size=1, **options)
    assert sorted(get_history(trainer, "losses/capped")) == pytest.approx([2.5, 7.5], rel=0.05)
    with pytest.raises(InputError, match=r"`CappedTrainer\.compute_pair_losses` does not"):
        names["CappedTrainer"].compute_pair_losses = SenseDPOTrainer.compute_pair_losses
        train(["capped"], **options)


def test_the_example_of_the_docstring_runs(model_paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    example = inspect.getdoc(SenseDPOTrainer).split("```python\n")[1].split("```")[0]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in example
    exec(example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model_paths["llama"]), {})
    assert (tmp_path / "sense-dpo" / "adapter_model.safetensors").exists()


def test_the_model_card_names_the_method(train, tmp_path):
    train(["cdpo"], save_strategy="steps", save_steps=1, max_steps=1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SENSE DPO" in card
    assert "2408.03256" in card


# ----------------------------------------------------------------------------- 4-bit models


@pytest.mark.parametrize("precompute", [False, True])
def test_4bit_training_with_evaluation_in_between(train, precompute):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    nf4 = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32",
    }
    options = {"model_init_kwargs": {"quantization_config": BitsAndBytesConfig(**nf4)}}
    plain, evaluated = (
        train(
            ["cdpo"],
            max_steps=4,
            learning_rate=5e-6,
            eval_pairs=PAIRS[:2],
            precompute_ref_log_probs=with_eval and precompute,
            eval_strategy="steps" if with_eval else "no",
            eval_steps=1,
            **options,
        )
        for with_eval in (False, True)
    )
    # bitsandbytes repacks the weights in eval mode and gets the gradients wrong afterwards.
    torch.testing.assert_close(
        get_history(plain, "grad_norm"), get_history(evaluated, "grad_norm"), rtol=1e-3, atol=1e-5
    )
    weights = tiny_models.get_weights(evaluated)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    # In bfloat16 a step of 5e-6 is rounded away nearly everywhere.
    before = train(["cdpo"], start=False, **options)
    changed = [
        (weights[name] != weight).float().mean().item()
        for name, weight in tiny_models.get_weights(before).items()
    ]
    assert min(changed) > 0.9


def test_adapter_dtype_auto_leaves_what_trl_makes(train):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    trainer = train(
        ["cdpo"],
        start=False,
        adapter_dtype="auto",
        model_init_kwargs={"quantization_config": BitsAndBytesConfig(load_in_4bit=True)},
    )
    dtypes = {weight.dtype for weight in tiny_models.get_weights(trainer).values()}
    assert dtypes == {torch.bfloat16}
