from __future__ import annotations

import logging
import math

import pytest
import tiny_models
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

PAIRS = [
    {
        "question_id": f"q{i}",
        "prompt": f"CREATE TABLE {table} (id INTEGER, name TEXT, age INTEGER)\nHow many?\n",
        "chosen": f"SELECT COUNT(*) FROM {table}" + (" WHERE age > 20" if i % 2 else ""),
        "rejected": f"SELECT name FROM {table} ORDER BY age" + (" LIMIT 1" if i % 3 else ""),
    }
    for i, table in enumerate(
        ["singer", "concert", "stadium", "country", "album", "song", "band", "city"]
    )
]


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save_tiny_model(folder, name) for name in tiny_models.ARCHITECTURES}


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
        resume_from=None,
        eval_pairs=None,
        start=True,
        ref_model=None,
        **options,
    ):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
        }
        if loss_type is not None:
            defaults["loss_type"] = loss_type
        config_class = SenseDPOConfig if trainer_class is SenseDPOTrainer else DPOConfig
        trainer = trainer_class(
            model=model_paths[architecture],
            ref_model=ref_model,
            args=config_class(**{**defaults, **options}),
            train_dataset=Dataset.from_list(pairs) if isinstance(pairs, list) else pairs,
            eval_dataset=None if eval_pairs is None else Dataset.from_list(eval_pairs),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )
        if start:
            trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return run


def get_weights(trainer):
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def assert_same_weights(first, second, **tolerance):
    first, second = get_weights(first), get_weights(second)
    assert first.keys() == second.keys()
    assert first
    for name in first:
        if tolerance:
            torch.testing.assert_close(first[name], second[name], **tolerance)
        else:
            assert torch.equal(first[name], second[name]), name


def get_history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def get_comparable_logs(trainer):
    timing = ("runtime", "per_second", "total_flos")
    return [
        {k: v for k, v in entry.items() if not any(t in k for t in timing)}
        for entry in trainer.state.log_history
    ]


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
        )
        for trainer_class in (SenseDPOTrainer, DPOTrainer)
    )
    assert_same_weights(ours, trls)
    assert get_comparable_logs(ours) == get_comparable_logs(trls)
    assert "eval_rewards/margins" in ours.state.log_history[1]


@pytest.mark.parametrize("loss_type", [["sigmoid"], ["sigmoid", "sft"]])
def test_weights_of_one_equal_no_weights_bit_for_bit(train, loss_type):
    weighted = train(loss_type, pairs=[{**pair, "pair_weight": 1.0} for pair in PAIRS])
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
            f"{prefix}losses/{name}" for prefix in ("", "eval_") for name in ("cdpo", "dpop")
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


def test_weights_are_scaled_to_a_mean_of_one_and_said_so(train, caplog):
    pairs = [{**pair, "confidence": w} for pair, w in zip(PAIRS, [4, 0, 2, 2] * 2, strict=True)]
    with caplog.at_level(logging.INFO, logger="sense_trl"):
        trainer = train(["cdpo"], pairs=pairs, pair_weight_column="confidence", start=False)
    assert list(trainer.train_dataset["pair_weight"]) == [2, 0, 1, 1] * 2
    assert "from a mean of 2 to 1" in caplog.text


def test_weights_can_be_left_unused(train):
    pairs = [{**pair, "pair_weight": 1.0 + i} for i, pair in enumerate(PAIRS)]
    assert_same_weights(
        train(["cdpo"], pairs=pairs, pair_weight_column=None), train(["cdpo"], pairs=PAIRS)
    )


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, None, "2"])
def test_unusable_weights_are_refused(train, weight):
    pairs = [{**PAIRS[0], "pair_weight": weight}, {**PAIRS[1], "pair_weight": weight}]
    with pytest.raises(InputError, match="Row 0 of the weight column 'pair_weight'"):
        train(["cdpo"], pairs=pairs)


def test_weights_of_zero_only_are_refused(train):
    with pytest.raises(InputError, match="Every weight"):
        train(["cdpo"], pairs=[{**pair, "pair_weight": 0} for pair in PAIRS])


def test_a_missing_weight_column_is_refused(train):
    with pytest.raises(InputError, match="`pair_weight_column` is 'weight'"):
        train(["cdpo"], pair_weight_column="weight")


def test_a_loss_that_cannot_be_weighted_is_refused(train):
    pairs = [{**pair, "pair_weight": 1.0} for pair in PAIRS]
    with pytest.raises(InputError, match="`loss_type` 'ipo' cannot be weighted"):
        train(["ipo"], pairs=pairs)
    with pytest.raises(InputError, match=r"`ld_alpha` is 0\.5"):
        train(["sigmoid"], pairs=pairs, ld_alpha=0.5)


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


def test_the_adapter_is_back_after_the_reference_was_computed(train):
    trainer = train(["cdpo"], max_steps=3)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() != pytest.approx(math.log(2), abs=1e-6)


# -------------------------------------------------------------------------------- the data


LONG = {**PAIRS[1], "question_id": "too-long", "prompt": PAIRS[1]["prompt"] * 20}


def test_a_pair_that_does_not_fit_fails_the_run_by_default(train):
    with pytest.raises(InputError) as error:
        train(["cdpo"], pairs=[*PAIRS, LONG], max_length=200)
    for part in ("1 of 9 pairs (11.11%)", "train dataset", "row 8", "'too-long'", "0.1112"):
        assert part in str(error.value)


def test_the_advice_of_the_error_works(train):
    with pytest.raises(InputError, match=r"Set `max_length` to (\d+)") as error:
        train(["cdpo"], pairs=[*PAIRS, LONG], max_length=200)
    needed = int(str(error.value).split("Set `max_length` to ")[1].split()[0])
    pairs = [*PAIRS, LONG]
    assert len(train(["cdpo"], pairs=pairs, max_length=needed, start=False).train_dataset) == 9
    with pytest.raises(InputError):
        train(["cdpo"], pairs=pairs, max_length=needed - 1)
    kept = train(["cdpo"], pairs=pairs, max_length=200, max_dropped_fraction=0.1112, start=False)
    assert len(kept.train_dataset) == 8


def test_dropped_pairs_are_named_and_do_not_count_in_the_weights(train, caplog):
    pairs = [{**pair, "pair_weight": 2.0} for pair in PAIRS] + [{**LONG, "pair_weight": 50.0}]
    trainer = train(["cdpo"], pairs=pairs, max_length=200, max_dropped_fraction=0.2, start=False)
    assert list(trainer.train_dataset["pair_weight"]) == [1.0] * 8
    assert "too-long" not in list(trainer.train_dataset["question_id"])
    assert "question_id 'too-long'" in caplog.text


def test_the_rejected_answer_counts_as_well(train):
    long_answer = {**PAIRS[0], "rejected": PAIRS[0]["rejected"] * 20}
    with pytest.raises(InputError, match="1 of 1 pairs"):
        train(["cdpo"], pairs=[long_answer], max_length=200)


def test_no_limit_keeps_everything(train):
    trainer = train(["cdpo"], pairs=[*PAIRS, LONG], max_length=None, start=False)
    assert len(trainer.train_dataset) == 9


def test_tokenized_pairs_are_taken_as_they_are(train):
    text = train(["cdpo"])
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    ids = train(["cdpo"], pairs=text.train_dataset.select_columns(columns))
    assert_same_weights(text, ids)


def test_a_stream_is_trained_on_and_refused_where_it_is_too_long(train):
    def stream(pairs):
        return IterableDataset.from_generator(lambda: iter(pairs * 4))

    trainer = train(["cdpo"], pairs=stream([{**pair, "pair_weight": 1.0} for pair in PAIRS]))
    assert_same_weights(trainer, train(["cdpo"], pairs=stream(PAIRS)))
    with pytest.raises(InputError, match="too-long"):
        train(["cdpo"], pairs=stream([LONG]), max_length=200)
    with pytest.raises(InputError, match=r"`max_dropped_fraction` is 0\.1"):
        train(["cdpo"], pairs=stream(PAIRS), max_dropped_fraction=0.1)


# ------------------------------------------------------------------------------- arguments


def test_a_trl_config_is_refused(model_paths, tmp_path):
    with pytest.raises(InputError, match="`args` is a DPOConfig"):
        SenseDPOTrainer(
            model_paths["llama"], args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
        )


def test_the_model_card_names_the_method(train, tmp_path):
    train(["cdpo"], save_strategy="steps", save_steps=1, max_steps=1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SENSE DPO" in card
    assert "2408.03256" in card
