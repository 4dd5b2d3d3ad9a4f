"""Training on prefix trees equals TRL's trainers on padded rows, and is refused where it does not."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from tiny_models import (
    ARCHITECTURES,
    PAIRS,
    QUESTIONS,
    SMALL,
    VOCAB_SIZE,
    assert_same_weights,
    build_small_model,
    build_tiny_model,
    build_tiny_tokenizer,
    get_history,
    get_weights,
)
from transformers import (
    MistralConfig,
    MixtralConfig,
)
from trl import DPOTrainer, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOTrainer, SenseSFTTrainer
from sense_trl.trainers.compat import trl as _trl_compat
from sense_trl.trainers.sharing import prefix_sharing

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

# What the metrics of both sides have in common, but for times.
METRICS = {
    "dpo": [
        "loss",
        "grad_norm",
        "entropy",
        "num_tokens",
        "logits/chosen",
        "logits/rejected",
        "mean_token_accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    ],
    "sft": ["loss", "grad_norm", "entropy", "num_tokens", "mean_token_accuracy"],
}


def assert_same_run(ours, trls, kind, *, rtol=1e-4, atol=1e-5):
    """Every step's metrics and the weights at the end."""
    assert min(get_history(ours, "prefix_sharing/tokens_saved")) > 0.15
    for name in METRICS[kind]:
        found, expected = get_history(ours, name), get_history(trls, name)
        assert len(expected) == trls.state.max_steps, name
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    # As a whole: AdamW gives a single weight whose gradient is rounding noise a step of full size.
    weights, others = get_weights(ours), get_weights(trls)
    assert weights.keys() == others.keys()
    for name in weights:
        assert (weights[name] - others[name]).norm() <= 10 * rtol * others[name].norm(), name


def get_gradients(trainer, num_rows=8):
    """Loss and gradients of one batch, away from the start, where many are zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(num_rows)])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, trls, tolerance=1e-4):
    (loss, gradients), (expected_loss, expected) = get_gradients(ours), get_gradients(trls)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in gradients.items():
        difference, norm = (gradient - expected[name]).norm(), expected[name].norm()
        assert difference <= tolerance * norm + 1e-9, (name, difference / norm)


# ------------------------------------------------------------------------------------- DPO


@pytest.mark.parametrize(
    "architecture, lora, checkpointing",
    [
        ("llama", True, True),
        ("llama", False, False),
        ("qwen2", True, False),
        ("qwen2", False, True),
    ],
)
def test_dpo_steps_equal_trl_s(train, architecture, lora, checkpointing):
    options = {
        "architecture": architecture,
        "lora": lora,
        "gradient_checkpointing": checkpointing,
        "max_steps": 5,
    }
    ours = train(["sigmoid", "sft"], prefix_sharing=True, **options)
    assert_same_run(ours, train(["sigmoid", "sft"], trainer_class=DPOTrainer, **options), "dpo")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_dpo_gradients_equal_trl_s(train, architecture, lora):
    options = {"architecture": architecture, "lora": lora, "start": False}
    ours = train(["sigmoid"], prefix_sharing=True, **options)
    assert_same_gradients(ours, train(["sigmoid"], trainer_class=DPOTrainer, **options))


def test_every_loss_of_trl_has_the_same_gradients(train):
    trainers = (
        train(["sigmoid"], prefix_sharing=True, start=False),
        train(["sigmoid"], trainer_class=DPOTrainer, start=False),
    )
    for loss_type in _trl_compat.get_trl_loss_types():
        for trainer in trainers:
            trainer.loss_types = [loss_type]
            trainer.label_smoothing = 0.1  # some losses are not defined at 0
            trainer.model.zero_grad()
        try:
            assert_same_gradients(*trainers)
        except AssertionError as error:
            raise AssertionError(loss_type) from error


@pytest.mark.parametrize(
    "options",
    [{"use_weighting": True}, {"ld_alpha": 0.5}, {"f_divergence_type": "js_divergence"}],
    ids=str,
)
def test_options_of_trl_s_losses_have_the_same_gradients(train, options):
    ours = train(["sigmoid"], prefix_sharing=True, start=False, **options)
    assert_same_gradients(
        ours, train(["sigmoid"], trainer_class=DPOTrainer, start=False, **options)
    )


@pytest.mark.parametrize("loss_type", [["cdpo"], ["dpop", "sft"]])
def test_our_losses_are_the_same_with_and_without_a_tree(train, loss_type):
    pairs = [{**pair, "pair_weight": 1.0 + i} for i, pair in enumerate(PAIRS)]
    ours, rows = (
        train(loss_type, pairs=pairs, prefix_sharing=sharing, start=False)
        for sharing in (True, False)
    )
    assert_same_gradients(ours, rows)


def test_a_long_dpo_run_stays_on_trl_s_path(train):
    options = {"max_steps": 20, "learning_rate": 5e-3, "beta": 0.5}
    ours = train(["sigmoid"], prefix_sharing=True, **options)
    trls = train(["sigmoid"], trainer_class=DPOTrainer, **options)
    assert_same_run(ours, trls, "dpo", rtol=1e-3, atol=1e-4)
    assert get_history(ours, "rewards/margins")[-1] > 1


def test_one_batch_of_eight_equals_eight_of_one(train):
    options = {"max_steps": 3, "prefix_sharing": True}
    large = train(["cdpo"], per_device_train_batch_size=8, **options)
    small = train(["cdpo"], per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    assert_same_weights(large, small, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reference", ["explicit", "precomputed"])
def test_references_are_computed_on_the_tree_as_well(train, reference):
    def get_options():
        if reference == "precomputed":
            return {"precompute_ref_log_probs": True, "max_steps": 4}
        return {"ref_model": build_tiny_model("llama", seed=1), "max_steps": 4}

    ours = train(["sigmoid"], prefix_sharing=True, eval_pairs=PAIRS[:3], **get_options())
    trls = train(["sigmoid"], trainer_class=DPOTrainer, eval_pairs=PAIRS[:3], **get_options())
    assert_same_run(ours, trls, "dpo")
    expected = trls.evaluate()
    for name, value in ours.evaluate().items():
        if any(part in name for part in ("loss", "rewards", "logps")):
            assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_policy_and_reference_both_run_on_the_tree(train, monkeypatch):
    trainer = train(
        ["sigmoid"], prefix_sharing=True, ref_model=build_tiny_model("llama"), start=False
    )
    shapes = []
    for model in (trainer.ref_model, trainer.model.get_base_model()):
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["input_ids"].shape[0] == 2
    trainer.compute_loss(trainer.model, batch)
    assert shapes == [tuple(batch["prefix_tree"].input_ids.shape)] * 2
    assert shapes[0][0] == 1


def test_streamed_pairs_share_prefixes_too(train):
    stream = IterableDataset.from_generator(lambda: iter(PAIRS * 4))
    trainer = train(["sigmoid"], pairs=stream, prefix_sharing=True)
    assert get_history(trainer, "prefix_sharing/tokens_saved")[0] > 0.2


def test_the_tokens_computed_and_saved_are_those_of_the_batch(train):
    pairs = [{"prompt": "a b c d e f g h", "chosen": " i", "rejected": " j"}]
    trainer = train(["sigmoid"], pairs=pairs, max_steps=1, per_device_train_batch_size=1)
    example = trainer.train_dataset[0]
    prompt, answers = (
        len(example["prompt_ids"]),
        [len(example["chosen_ids"]), len(example["rejected_ids"])],
    )
    expected = 1 - (prompt + sum(answers)) / (2 * (prompt + max(answers)))
    # The chosen and the rejected answer may begin with the same token.
    assert get_history(trainer, "prefix_sharing/tokens_saved") == [
        pytest.approx(expected, abs=0.05)
    ]
    (computed,) = get_history(trainer, "prefix_sharing/tokens_computed")
    assert prompt + sum(answers) - 1 <= computed <= prompt + sum(answers)


# ------------------------------------------------------------------------------------- SFT


@pytest.mark.parametrize(
    "architecture, lora, checkpointing",
    [
        ("llama", True, True),
        ("llama", False, False),
        ("qwen2", True, False),
        ("qwen2", False, True),
    ],
)
def test_sft_steps_equal_trl_s(train_sft, architecture, lora, checkpointing):
    options = {
        "architecture": architecture,
        "lora": lora,
        "gradient_checkpointing": checkpointing,
        "max_steps": 5,
        "per_device_train_batch_size": 8,
    }
    ours = train_sft(prefix_sharing=True, **options)
    assert_same_run(ours, train_sft(trainer_class=SFTTrainer, **options), "sft")


def test_autocast_runs_are_as_close_to_trl_s_as_bfloat16_is(train, train_sft):
    """TRL rounds the logits to bfloat16, which is 2e-3 of them; a tree's stay in float32."""
    ours, trls = (
        train_sft(bf16=True, prefix_sharing=True),
        train_sft(bf16=True, trainer_class=SFTTrainer),
    )
    for name in ("loss", "grad_norm", "entropy"):
        torch.testing.assert_close(
            get_history(ours, name), get_history(trls, name), rtol=2e-2, atol=1e-3
        )
    ours, trls = (
        train(["sigmoid"], bf16=True, **options)
        for options in ({"prefix_sharing": True}, {"trainer_class": DPOTrainer})
    )
    for name in ("loss", "grad_norm", "logps/chosen"):
        torch.testing.assert_close(
            get_history(ours, name), get_history(trls, name), rtol=5e-2, atol=1e-2
        )


@pytest.mark.parametrize("options", [{}, {"loss_type": "dft"}, {"completion_only_loss": False}])
def test_sft_gradients_equal_trl_s(train_sft, options):
    ours = train_sft(prefix_sharing=True, start=False, **options)
    assert_same_gradients(ours, train_sft(trainer_class=SFTTrainer, start=False, **options))


def test_a_long_sft_run_stays_on_trl_s_path(train_sft):
    options = {"max_steps": 20, "learning_rate": 5e-3, "per_device_train_batch_size": 8}
    ours = train_sft(prefix_sharing=True, **options)
    trls = train_sft(trainer_class=SFTTrainer, **options)
    assert_same_run(ours, trls, "sft", rtol=1e-3, atol=1e-4)
    assert get_history(ours, "loss")[-1] < 0.9 * get_history(ours, "loss")[0]


@pytest.mark.parametrize("size", [4, 1])
def test_sft_accumulation_changes_nothing(train_sft, size):
    options = {"max_steps": 3, "prefix_sharing": True}
    large = train_sft(per_device_train_batch_size=8, **options)
    small = train_sft(
        per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **options
    )
    assert_same_weights(large, small, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        get_history(large, "loss"), get_history(small, "loss"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("group_size, num_groups", [(4, 1), (2, 2), (1, 2)])
def test_smaller_groups_mix_databases_in_a_step_and_keep_trl_s_values(
    train_sft, group_size, num_groups
):
    # Four questions about either database, in steps of four. Which ones meet is random, so the
    # number of databases is at most what fits into a step.
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "seed": 1}
    questions = [{**QUESTIONS[i % 4], "db_id": f"db{i % 2}"} for i in range(8)]
    trainer = train_sft(
        rows=questions,
        prefix_sharing=True,
        group_by_columns=["db_id"],
        group_size=group_size,
        **options,
    )
    counts = get_history(trainer, "groups_per_step")
    assert len(counts) == 4
    assert set(counts) <= set(range(1, num_groups + 1))
    assert max(counts) == num_groups
    # The same order without sharing is TRL's own computation.
    alone = train_sft(
        rows=questions,
        prefix_sharing=False,
        group_by_columns=["db_id"],
        group_size=group_size,
        **options,
    )
    torch.testing.assert_close(
        get_history(trainer, "loss"), get_history(alone, "loss"), rtol=1e-4, atol=1e-5
    )


# -------------------------------------------------------------------------------- obstacles


@pytest.fixture
def windowed_model(tmp_path):
    model = build_small_model(MistralConfig, **SMALL, sliding_window=64)
    model.save_pretrained(tmp_path / "windowed")
    return str(tmp_path / "windowed")


def test_auto_falls_back_with_one_line_and_true_refuses(train_sft, windowed_model, caplog):
    with caplog.at_level(logging.WARNING, logger="sense_trl"):
        trainer = train_sft(model=windowed_model)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("sense_trl")]
    assert len(lines) == 1
    assert "window of 64 tokens" in lines[0]
    assert not get_history(trainer, "prefix_sharing/tokens_saved")
    trls = train_sft(model=windowed_model, trainer_class=SFTTrainer)
    assert_same_weights(trainer, trls)
    with pytest.raises(InputError, match="`prefix_sharing` is True, but the model sees a window"):
        train_sft(model=windowed_model, prefix_sharing=True)


def test_off_is_trl_bit_for_bit(train_sft):
    ours = train_sft(prefix_sharing=False)
    assert_same_weights(ours, train_sft(trainer_class=SFTTrainer))
    assert not get_history(ours, "prefix_sharing/tokens_saved")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"train_dataset": Dataset.from_list([{"input_ids": [1], "images": ["x"]}])}, "images"),
        ({"aux_loss_enabled": True}, "load-balancing"),
        ({"padding_free": True}, "`padding_free`"),
        ({"compute_loss_func": print}, "`compute_loss_func`"),
        ({"label_smoother": print}, "`label_smoothing_factor`"),
        ({"args": SimpleNamespace(packing=True)}, "`packing`"),
        (
            {
                "accelerator": SimpleNamespace(
                    parallelism_config=SimpleNamespace(cp_enabled=True, sp_enabled=False)
                )
            },
            "context or sequence parallelism",
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_settings_that_need_every_row(changes, reason):
    plain = {
        "train_dataset": Dataset.from_list([{"input_ids": [1]}]),
        "aux_loss_enabled": False,
        "padding_free": False,
        "compute_loss_func": None,
        "label_smoother": None,
        "args": SimpleNamespace(),
        "accelerator": SimpleNamespace(parallelism_config=None),
    }
    assert prefix_sharing._find_obstacle_in_options(SimpleNamespace(**plain)) is None
    # TRL's, for transformers before 5.19: no function that needs anything.
    noted = {**plain, "compute_loss_func": "non-None value to disable scaling"}
    assert prefix_sharing._find_obstacle_in_options(SimpleNamespace(**noted)) is None
    found = prefix_sharing._find_obstacle_in_options(SimpleNamespace(**{**plain, **changes}))
    assert reason in found


# ------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"use_dora": True},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("kind", ["dpo", "sft"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_adapters_of_other_places_have_trl_s_gradients(train, train_sft, kind, options):
    def build(trainer_class, **sharing):
        adapter = LoraConfig(r=4, **{"target_modules": ["q_proj"], **options})
        common = {"lora": adapter, "start": False, **sharing}
        if kind == "sft":
            return train_sft(trainer_class=trainer_class, **common)
        return train(["sigmoid"], trainer_class=trainer_class, **common)

    ours = build(SenseSFTTrainer if kind == "sft" else SenseDPOTrainer, prefix_sharing=True)
    assert_same_gradients(ours, build(SFTTrainer if kind == "sft" else DPOTrainer))


def test_trained_tokens_of_tied_embeddings_are_those_of_the_model_s_own_logits(train_sft):
    """TRL's head asks the wrapper for a bias, which it has not."""
    adapter = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 40, 60])
    trainer = train_sft(lora=adapter, prefix_sharing=True, start=False)
    loss, gradients = get_gradients(trainer)
    name = next(name for name in gradients if "trainable_tokens_delta" in name)
    assert gradients[name].any()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    del batch["prefix_tree"]
    trainer.model.zero_grad()
    expected = trainer.model(**batch).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    found = dict(trainer.model.named_parameters())[name].grad
    torch.testing.assert_close(found, gradients[name], rtol=1e-4, atol=1e-7)


def test_an_adapter_that_needs_every_row_falls_back(train_sft, caplog):
    def build(**options):
        adapter = LoraConfig(
            r=4,
            target_modules=["q_proj"],
            alora_invocation_tokens=build_tiny_tokenizer()("Who")["input_ids"],
            task_type="CAUSAL_LM",
        )
        return train_sft(lora=adapter, start=False, **options)

    assert_same_gradients(build(), build(trainer_class=SFTTrainer))
    assert "aLoRA" in caplog.text
    with pytest.raises(InputError, match=r"`prefix_sharing` is True, but the adapter .*aLoRA"):
        build(prefix_sharing=True)


# -------------------------------------------------------------------------------- batches


def change_labels(batch):
    """Another token than the one that is there, as where labels are corrected."""
    labels = batch["labels"]
    return {**batch, "labels": labels.where(labels == -100, (labels + 1) % VOCAB_SIZE)}


def add_positions(batch):
    return {**batch, "position_ids": torch.arange(3, 3 + batch["input_ids"].shape[1])[None]}


def pad_left(batch):
    """Rolled to the right."""
    shifts = (batch["attention_mask"] == 0).sum(1).tolist()
    assert any(shifts)
    return {
        name: torch.stack([row.roll(n) for row, n in zip(rows, shifts, strict=True)])
        for name, rows in batch.items()
    }


@pytest.mark.parametrize("change", [change_labels, add_positions, pad_left])
def test_batches_of_another_layout_are_computed_row_by_row(train_sft, caplog, change):
    def build(**options):
        trainer = train_sft(start=False, max_steps=1, gradient_accumulation_steps=2, **options)
        collate = DataCollatorForLanguageModeling(pad_token_id=0)
        if isinstance(trainer, SenseSFTTrainer):
            trainer.data_collator.collator = lambda examples: change(collate(examples))
        else:
            trainer.data_collator = lambda examples: change(collate(examples))
        return trainer

    ours, trls = build(), build(trainer_class=SFTTrainer)
    ours.train()
    trls.train()
    assert_same_weights(ours, trls)
    assert get_history(ours, "loss") == get_history(trls, "loss")
    assert get_history(ours, "prefix_sharing/tokens_saved") == [0]
    assert caplog.text.count("are computed once per row") == 1
    with pytest.raises(InputError, match="`prefix_sharing` is True, but in a batch"):
        build(prefix_sharing=True).train()


def test_noise_in_embeddings_is_drawn_for_every_row(train_sft, caplog):
    ours = train_sft(neftune_noise_alpha=5.0, max_steps=1)
    assert "`neftune_noise_alpha` asks for noise" in caplog.text
    assert_same_weights(
        ours, train_sft(trainer_class=SFTTrainer, neftune_noise_alpha=5.0, max_steps=1)
    )
    with pytest.raises(InputError, match="`neftune_noise_alpha`"):
        train_sft(neftune_noise_alpha=5.0, prefix_sharing=True)


def test_the_trainers_have_what_the_obstacles_are_read_from(train, train_sft):
    for trainer in (train(["sigmoid"], start=False), train_sft(start=False)):
        assert trainer.aux_loss_enabled is False
        assert trainer.padding_free is False
        assert trainer.compute_loss_func is None
        assert trainer.label_smoother is None


def test_a_mixture_of_experts_with_its_loss_falls_back(train_sft, tmp_path, caplog):
    options = {
        **SMALL,
        "num_local_experts": 2,
        "output_router_logits": True,
        "sliding_window": None,
    }
    build_small_model(MixtralConfig, **options).save_pretrained(tmp_path / "moe")
    train_sft(model=str(tmp_path / "moe"), lora=False, max_steps=1)
    assert "load-balancing loss" in caplog.text


# ---------------------------------------------------------------------------------- groups


def test_grouping_saves_more_and_resumes_in_the_same_order(train_sft, tmp_path):
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 12,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 10,
    }
    grouped = train_sft(group_by_columns=["db_id"], output_dir=str(tmp_path / "a"), **options)
    random = train_sft(output_dir=str(tmp_path / "b"), **options)
    saved, saved_random = (
        sum(get_history(trainer, "prefix_sharing/tokens_saved")) / 12
        for trainer in (grouped, random)
    )
    assert saved > 0.25
    assert saved > 1.5 * saved_random
    # Step 10 is within the second epoch.
    resumed = train_sft(
        group_by_columns=["db_id"],
        output_dir=str(tmp_path / "c"),
        resume_from=str(tmp_path / "a" / "checkpoint-10"),
        **options,
    )
    assert_same_weights(grouped, resumed)


def test_unusable_columns_to_group_by_are_refused(train_sft):
    with pytest.raises(InputError, match=r"`group_by_columns` names \['schema'\]"):
        train_sft(group_by_columns=["db_id", "schema"])
    with pytest.raises(InputError, match=r"`group_by_columns` is \[\]"):
        train_sft(group_by_columns=[])
    stream = IterableDataset.from_generator(lambda: iter(QUESTIONS))
    with pytest.raises(InputError, match="IterableDataset"):
        train_sft(rows=stream, group_by_columns=["db_id"])
    with pytest.raises(InputError, match="`train_sampling_strategy` is 'group_by_length'"):
        train_sft(group_by_columns=["db_id"], train_sampling_strategy="group_by_length")


def test_weights_are_trained(train_sft):
    before, after = get_weights(train_sft(start=False)), get_weights(train_sft(max_steps=3))
    assert any((before[name] != after[name]).any() for name in before)
