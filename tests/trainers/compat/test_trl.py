"""One canary per thing of TRL that its documentation does not promise.

When a TRL release breaks the trainers, the test that fails here says which assumption fell.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch
from tiny_models import PAIRS
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from sense_trl.trainers import SenseDPOTrainer
from sense_trl.trainers.compat import trl as compat
from sense_trl.trainers.sharing.heads import PrefixTreeOutput

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def trl_trainer(train):
    return train(["sigmoid"], trainer_class=DPOTrainer, start=False)


@pytest.fixture
def batch(trl_trainer):
    return trl_trainer.data_collator([trl_trainer.train_dataset[i] for i in range(3)])


def test_constructor_takes_what_trl_takes():
    def names(cls):
        return list(inspect.signature(cls.__init__).parameters)

    assert names(SenseDPOTrainer) == [*names(DPOTrainer), "teacher_model"]


def test_overridden_methods_have_trl_s_signatures():
    for name in (
        "_prepare_dataset",
        "_set_signature_columns_if_needed",
        "_get_train_sampler",
        "save_model",
        "_precompute_ref_logps",
        "compute_loss",
        "compute_ref_log_probs",
    ):
        ours, trls = (
            list(inspect.signature(getattr(cls, name)).parameters)
            for cls in (SenseDPOTrainer, DPOTrainer)
        )
        assert ours == trls, name


def test_loss_types_are_those_that_trl_s_error_lists(trl_trainer, batch):
    trl_trainer.loss_types = ["unknown"]
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trl_trainer.compute_loss(trl_trainer.model, batch)
    listed = set(str(error.value).replace("'", "").split("[")[1].split("]")[0].split(", "))
    assert set(compat.get_trl_loss_types()) == listed


@pytest.mark.parametrize("loss_type", compat.get_trl_loss_types())
def test_label_smoothing_is_read_by_the_losses_we_say(train, loss_type):
    losses = []
    for label_smoothing in (0.1, 0.2):
        trainer = train([loss_type], trainer_class=DPOTrainer, label_smoothing=label_smoothing)
        losses.append(trainer.state.log_history[1]["loss"])
    assert (losses[0] != losses[1]) == (loss_type in compat.LABEL_SMOOTHING_READERS)


def test_prepare_dataset_filters_by_the_length_of_the_arguments_it_is_given(train):
    long = {**PAIRS[0], "prompt": PAIRS[0]["prompt"] * 20}
    lengths = [
        len(
            train(
                ["sigmoid"],
                pairs=[long, *PAIRS],
                trainer_class=DPOTrainer,
                max_length=max_length,
                start=False,
            ).train_dataset
        )
        for max_length in (200, None)
    ]
    assert lengths == [len(PAIRS), len(PAIRS) + 1]


def test_trl_sets_its_checkpointing_default_under_the_old_name():
    default = next(f.default for f in fields(DPOConfig) if f.name == "gradient_checkpointing")
    assert default is True


def test_signature_columns_are_a_list_that_can_grow(trl_trainer):
    assert trl_trainer._signature_columns is None
    trl_trainer._set_signature_columns_if_needed()
    assert isinstance(trl_trainer._signature_columns, list)
    assert set(trl_trainer._signature_columns) >= {"prompt_ids", "chosen_ids", "rejected_ids"}


def test_loss_types_and_weights_are_read_at_every_loss(trl_trainer, batch):
    assert trl_trainer.loss_types == ["sigmoid"]
    assert trl_trainer.loss_weights == [1.0]
    whole = trl_trainer.compute_loss(trl_trainer.model, batch)
    trl_trainer.loss_weights = [0.5]
    half = trl_trainer.compute_loss(trl_trainer.model, batch)
    assert half.item() == pytest.approx(whole.item() / 2)
    trl_trainer.loss_types, trl_trainer.loss_weights = [], []
    assert trl_trainer.compute_loss(trl_trainer.model, batch) == 0.0


def test_reference_is_read_from_the_batch_on_demand(trl_trainer, batch):
    reference = trl_trainer.compute_ref_log_probs(trl_trainer.model, batch)
    shifted = {"ref_chosen_logps": reference[0] - 100, "ref_rejected_logps": reference[1]}
    plain = trl_trainer.compute_loss(trl_trainer.model, {**batch, **shifted})
    trl_trainer.precompute_ref_logps = True
    used = trl_trainer.compute_loss(trl_trainer.model, {**batch, **shifted})
    assert plain.item() == pytest.approx(0.6931, abs=1e-4)
    assert used.item() < 0.01


def test_policy_runs_once_through_the_model_that_is_given(trl_trainer, batch):
    calls = []

    def model(**kwargs):
        calls.append(kwargs)
        return trl_trainer.model(**kwargs)

    trl_trainer.compute_loss(model, batch)
    assert [call["fused_lm_head"] for call in calls] == [True]


def test_log_probs_are_zero_outside_the_answers_and_chosen_come_first(trl_trainer, batch):
    policy = compat.RecordedForward(trl_trainer.model)
    trl_trainer.compute_loss(policy, batch)
    num_rows, seq_len = batch["input_ids"].shape
    per_token_logps = policy.get_per_token_logps(seq_len)
    assert per_token_logps.shape == (num_rows, seq_len - 1)
    assert per_token_logps.requires_grad
    # The slow way: all logits, and one position after the other.
    with torch.no_grad():
        logits = trl_trainer.model(
            batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    expected = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    expected = expected * batch["completion_mask"][:, 1:]
    torch.testing.assert_close(per_token_logps, expected, rtol=1e-4, atol=1e-4)
    chosen = trl_trainer.train_dataset[0]["chosen_ids"]
    assert batch["input_ids"][0][batch["completion_mask"][0].bool()].tolist() == chosen


def test_the_output_has_the_fields_that_a_tree_fills():
    assert set(PrefixTreeOutput.__dataclass_fields__) == {
        "logit_terms",
        *FusedCausalLMOutput.__dataclass_fields__,
    }
    # Those that a tree leaves out are for the model's own loss and for mixtures of experts.
    filled = {"log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"}
    assert set(FusedCausalLMOutput.__dataclass_fields__) - filled == {"loss", "aux_loss"}


def test_positions_of_virtual_tokens_are_cut_off():
    log_probs = torch.arange(12.0).reshape(2, 6)  # 3 virtual tokens before 4 real ones
    policy = compat.RecordedForward(lambda **_: FusedCausalLMOutput(log_probs=log_probs))
    policy(fused_lm_head=True)
    assert policy.get_per_token_logps(4).tolist() == [[3, 4, 5], [9, 10, 11]]


def test_our_metrics_are_averaged_beside_trl_s(train):
    trainer = train(["sigmoid"], start=False)
    for mode, name in (("train", "canary"), ("eval", "eval_canary")):
        trainer.model.train(mode == "train")
        trainer._metrics[mode]["theirs"] += [2.0]
        trainer._add_metric("canary", torch.tensor(1.0))
        trainer._add_metric("canary", 3.0)
        logs = {"loss": 1.0}
        trainer.log(logs)
        logged = trainer.state.log_history[-1]
        assert logs[name] == 2.0
        assert (logged[name], logged[name.replace("canary", "theirs")]) == (2.0, 2.0)
        assert logged["loss"] == 1.0
        trainer.log({})
        assert name not in trainer.state.log_history[-1]


def test_model_card_attributes_exist():
    for name in ("_tag_names", "_name", "_paper"):
        assert type(getattr(DPOTrainer, name)) is type(getattr(SenseDPOTrainer, name))
    assert DPOTrainer._paper.keys() == SenseDPOTrainer._paper.keys()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_scoring_trained_positions_only_changes_no_value_and_projects_fewer_rows(
    architecture, monkeypatch
):
    from tiny_models import VOCAB_SIZE, build_tiny_model
    from trl.trainer import utils as trl_utils

    labels = torch.full((2, 12), -100)
    labels[0, 8:], labels[1, 10:] = 7, 9
    ids = torch.arange(24).reshape(2, 12) % VOCAB_SIZE
    rows = []

    def run():
        model = build_tiny_model(architecture)
        trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        (-output.log_probs.sum()).backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters()}

    kernel = trl_utils._ChunkedLogProbFunction

    class Counting(kernel):
        @classmethod
        def apply(cls, hidden, *rest):
            rows.append(hidden.shape[0])
            return kernel.apply(hidden, *rest)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Counting)
    # Another test of this process may have called it already.
    untouched = getattr(trl_utils._use_triton, "replaces", trl_utils._use_triton)
    monkeypatch.setattr(trl_utils, "_use_triton", untouched)
    expected, expected_gradients = run()
    compat.score_trained_positions_only()
    compat.score_trained_positions_only()
    found, gradients = run()
    # 2 rows of 11 predicting positions, of which 4 and 2 are trained.
    assert rows == [22, 6]
    for name in ("log_probs", "entropy", "is_top1"):
        torch.testing.assert_close(
            getattr(found, name) * (labels[:, 1:] != -100),
            getattr(expected, name) * (labels[:, 1:] != -100),
        )
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient)


def test_what_runs_a_teacher_is_there():
    assert next(iter(inspect.signature(compat.add_fused_lm_head).parameters)) == "model"
    assert next(iter(inspect.signature(compat.create_model_from_path).parameters)) == "model_id"
    assert list(inspect.signature(compat.use_adapter).parameters) == ["model", "adapter_name"]


def test_a_wrapped_model_writes_within_a_block(trl_trainer):
    model = trl_trainer.model
    with compat.unwrap_model_for_generation(model, trl_trainer.accelerator) as unwrapped:
        ids = torch.tensor([[5, 6]], device=unwrapped.device)
        written = unwrapped.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2)
    assert written.shape == (1, 4)
