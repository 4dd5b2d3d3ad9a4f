"""The token ids of prompts and answers, against what the trainers are given by TRL."""

from __future__ import annotations

import pytest
from tiny_models import PAIRS, QUESTIONS, build_tiny_tokenizer

from sense_trl.errors import InputError
from sense_trl.trainers.rows.token_rows import get_token_row

TOKENIZER = build_tiny_tokenizer()


def as_messages(rows, answers):
    """The same rows as conversations."""
    return [
        {
            **row,
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{name: [{"role": "assistant", "content": row[name]}] for name in answers},
        }
        for row in rows
    ]


# The end of the prompt and the beginning of the answer are one token.
MERGING = [
    {"prompt": row["prompt"] + "SEL", "chosen": row["chosen"][3:], "rejected": row["rejected"][3:]}
    for row in PAIRS
]


@pytest.mark.parametrize("rows", [QUESTIONS, as_messages(QUESTIONS, ["completion"])])
def test_rows_of_fine_tuning_get_the_trainer_s_tokens(train_sft, rows):
    trainer = train_sft(rows=rows, lora=False, start=False)
    expected = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    found = [get_token_row(row, TOKENIZER) for row in rows]
    assert [([*prompt, *answer], [-100] * len(prompt) + answer) for prompt, answer in found] == (
        expected
    )


@pytest.mark.parametrize("rows", [PAIRS, MERGING, as_messages(PAIRS, ["chosen", "rejected"])])
def test_rows_of_preferences_get_the_trainer_s_tokens(train, rows):
    trainer = train(["sigmoid"], pairs=rows, lora=False, start=False)
    expected = [(row["prompt_ids"], row["chosen_ids"]) for row in trainer.train_dataset]
    assert [get_token_row(row, TOKENIZER) for row in rows] == expected


def test_several_rejected_answers_end_the_prompt_where_the_first_one_parts():
    row = {"prompt": "How many?\nSEL", "chosen": "X"}
    apart = len(TOKENIZER("How many?\nSEL")["input_ids"])
    for rejected, is_shorter in (("X", False), ("ECT 1", True), (["X", "ECT 1"], True)):
        prompt_ids, chosen_ids = get_token_row({**row, "rejected": rejected}, TOKENIZER)
        assert (len(prompt_ids) < apart) == is_shorter
        assert TOKENIZER.decode([*prompt_ids, *chosen_ids]) == "How many?\nSELX<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_ids": [5], "completion_ids": [6, 7]},
        {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [8]},
        {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]},
    ],
)
def test_tokens_are_taken_as_they_are(row):
    assert get_token_row(row, None) == ([5], [6, 7])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "How many?"}, r"has the columns \['question'\]"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}, "trains 1 of 3 tokens"),
    ],
)
def test_rows_without_an_answer_at_the_end_are_refused(row, message):
    with pytest.raises(InputError, match=message):
        get_token_row(row, TOKENIZER)
