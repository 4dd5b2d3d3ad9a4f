"""What `SenseDPOTrainer` does with a dataset: lengths, weights, tokenised and streamed pairs."""

from __future__ import annotations

import logging
import math

import pytest
from datasets import IterableDataset
from tiny_models import PAIRS, assert_same_weights, get_history

from sense_trl.errors import InputError

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

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
    long_answer = {**PAIRS[0], "rejected": PAIRS[0]["rejected"] * 40}
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


def test_margins_of_a_stream_and_of_another_column_reach_the_batch(train):
    pairs = [{**pair, "distance": float(i)} for i, pair in enumerate(PAIRS)]
    trainer = train(["cdpo"], pairs=pairs, pair_margin_column="distance", start=False)
    assert list(trainer.train_dataset["pair_margin"]) == [float(i) for i in range(len(PAIRS))]
    rows = [{**pair, "pair_margin": 1} for pair in PAIRS]
    streamed = train(["cdpo"], pairs=IterableDataset.from_generator(lambda: iter(rows * 4)))
    # Policy and reference agree at first: -log sigmoid(-1) - 0.1.
    assert get_history(streamed, "loss")[0] == pytest.approx(math.log1p(math.e) - 0.1, rel=1e-4)


def test_unusable_margins_are_named(train):
    pairs = [{**PAIRS[0], "pair_margin": 1.0}, {**PAIRS[1], "pair_margin": float("nan")}]
    with pytest.raises(InputError, match="Row 1 of the margin column 'pair_margin'"):
        train(["cdpo"], pairs=pairs)
    with pytest.raises(InputError, match="`pair_margin_column` is 'margin'"):
        train(["cdpo"], pair_margin_column="margin")
    with pytest.raises(InputError, match="`loss_type` 'hinge' takes no value per pair"):
        train(["hinge"], pairs=pairs[:1])


def test_a_loss_that_cannot_be_weighted_is_refused(train):
    pairs = [{**pair, "pair_weight": 1.0 + i % 2} for i, pair in enumerate(PAIRS)]
    with pytest.raises(InputError, match="`loss_type` 'ipo' takes no value per pair"):
        train(["ipo"], pairs=pairs)
    with pytest.raises(InputError, match=r"`ld_alpha` is 0\.5"):
        train(["sigmoid"], pairs=pairs, ld_alpha=0.5)
    stream = IterableDataset.from_generator(lambda: iter([{**PAIRS[0], "pair_weight": 1.0}]))
    with pytest.raises(InputError, match="`loss_type` 'ipo' takes no value per pair"):
        train(["ipo"], pairs=stream)


@pytest.mark.parametrize("options", [{"loss_type": ["ipo"]}, {"ld_alpha": 0.5}])
def test_equal_weights_and_margins_of_zero_are_passed_over_by_every_loss(train, options):
    options = {"loss_type": ["sigmoid_norm", "sft"], **options}
    pairs = [{**pair, "pair_weight": 0.3, "pair_margin": 0.0} for pair in PAIRS]
    trainer = train(pairs=pairs, **options)
    assert not {"pair_weight", "pair_margin"} & set(trainer.train_dataset.column_names)
    assert_same_weights(trainer, train(**options))
