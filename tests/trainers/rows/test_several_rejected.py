"""One chosen answer against several rejected ones."""

from __future__ import annotations

import pytest
from datasets import Dataset, IterableDataset
from tiny_models import PAIRS, assert_same_weights, get_history
from trl import DPOTrainer

from sense_trl.errors import InputError
from sense_trl.trainers.rows.several_rejected import split_rejected_lists

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

EXAMPLES = [
    {**pair, "rejected": [pair["rejected"], "SELECT 1", f"SELECT id FROM {pair['question_id']}"]}
    for pair in PAIRS[:4]
]
AS_PAIRS = [{**e, "rejected": rejected} for e in EXAMPLES for rejected in e["rejected"]]


def split(rows, weight_column=None):
    return list(split_rejected_lists(Dataset.from_list(rows), [weight_column]))


def test_every_rejected_answer_makes_a_pair():
    expected = [{**pair, "example_index": i // 3} for i, pair in enumerate(AS_PAIRS)]
    assert split(EXAMPLES) == expected
    stream = IterableDataset.from_generator(lambda: iter(EXAMPLES))
    assert list(split_rejected_lists(stream, [])) == expected


@pytest.mark.parametrize(
    "row",
    [
        PAIRS[0],
        {"rejected": [{"role": "assistant", "content": "SELECT 1"}]},
        {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 4], "rejected": ["a", "b"]},
    ],
    ids=["text", "conversation", "tokens"],
)
def test_one_rejected_answer_stays_as_it_is(row):
    assert split([row]) == [row]


@pytest.mark.parametrize(
    "column, answers",
    [
        ("rejected", [[{"role": "assistant", "content": sql}] for sql in "ab"]),
        ("rejected_ids", [[1, 2], [3]]),
    ],
)
def test_conversations_and_tokens_are_split_too(column, answers):
    rows = split([{"prompt_ids": [7], column: answers}])
    assert rows == [{"prompt_ids": [7], column: answer, "example_index": 0} for answer in answers]


def test_weights_are_one_for_all_or_one_each():
    rows = [{"rejected": ["a", "b"], "w": [1.0, 2.0]}, {"rejected": ["c"], "w": [3.0]}]
    assert [row["w"] for row in split(rows, "w")] == [1, 2, 3]
    rows = [{"rejected": ["a", "b"], "w": 1.0}, {"rejected": ["c"], "w": 3.0}]
    assert [row["w"] for row in split(rows, "w")] == [1, 1, 3]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"rejected": []}, "`rejected` of row 1 is empty"),
        ({"rejected": ["a"], "w": [1.0, 2.0]}, "`w` of row 1 has 2 entries"),
    ],
)
def test_unusable_lists_are_refused(row, message):
    rows = [{"rejected": ["a"], "w": [1.0]}, {"w": [1.0], **row}]
    with pytest.raises(InputError, match=message):
        split(rows, "w")


def test_training_equals_training_on_the_pairs(train):
    options = {"per_device_train_batch_size": 12, "max_steps": 3}
    lists = train(["sigmoid"], pairs=EXAMPLES, **options)
    pairs = train(["sigmoid"], pairs=AS_PAIRS, trainer_class=DPOTrainer, **options)
    assert_same_weights(lists, pairs, rtol=1e-3, atol=1e-5)


def test_the_pairs_of_an_example_share_a_batch_and_its_prompt_and_chosen_answer(train):
    options = {"per_device_train_batch_size": 3, "max_steps": 4}
    lists = train(["sigmoid"], pairs=EXAMPLES, **options)
    pairs = train(["sigmoid"], pairs=AS_PAIRS, **options)
    # Six rows of a prompt and an answer become one prompt and four answers.
    assert min(get_history(lists, "prefix_sharing/tokens_saved")) > 0.65
    assert min(get_history(pairs, "prefix_sharing/tokens_saved")) < 0.6


def test_lists_work_with_weights_lengths_and_a_precomputed_reference(train):
    rows = [{**e, "pair_weight": [1.0, 2.0, 3.0]} for e in EXAMPLES]
    options = {"max_steps": 3, "per_device_train_batch_size": 6, "eval_pairs": rows[:2]}
    live = train(["cdpo"], pairs=rows, **options)
    precomputed = train(["cdpo"], pairs=rows, precompute_ref_log_probs=True, **options)
    assert_same_weights(live, precomputed, rtol=1e-3, atol=1e-5)
    assert precomputed.evaluate()["eval_loss"] == pytest.approx(
        live.evaluate()["eval_loss"], rel=1e-3
    )
    long = {**EXAMPLES[0], "rejected": ["SELECT 1", "SELECT 1, " * 40 + "2"]}
    with pytest.raises(InputError, match=r"1 of 2 pairs \(50.00%\)"):
        train(["cdpo"], pairs=[long], max_length=100)
