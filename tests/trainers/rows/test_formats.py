"""Rows of public layouts become prompts and answers of one kind, or are refused by name."""

from __future__ import annotations

import doctest
import json

import pytest
from datasets import Dataset
from tiny_models import OPTIONS, build_tiny_model, build_tiny_tokenizer

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer, SenseSFTConfig, SenseSFTTrainer
from sense_trl.trainers.rows import formats as module
from sense_trl.trainers.rows.formats import PAIR_LAYOUTS, select_pair_columns, unify_row, unify_rows
from sense_trl.trainers.rows.token_rows import get_token_row

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SYSTEM = {"role": "system", "content": "singer(id, name)"}
USER = {"role": "user", "content": "How many?"}
GOOD = {"role": "assistant", "content": "SELECT COUNT(*) FROM singer"}
BAD = {"role": "assistant", "content": "SELECT name FROM singer"}
TEXTS = {"chosen": GOOD["content"], "rejected": BAD["content"]}
EXPECTED = {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}
WITHOUT_SYSTEM = {**EXPECTED, "prompt": [USER]}


def transcript(*messages):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)


LAYOUTS = {
    "orca_dpo": ({"system": SYSTEM["content"], "question": "How many?", **TEXTS}, EXPECTED),
    "distilabel_orca": ({"system": SYSTEM["content"], "input": "How many?", **TEXTS}, EXPECTED),
    "ultrafeedback": (
        {"prompt": "How many?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        WITHOUT_SYSTEM,
    ),
    "implicit_prompt": (
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        EXPECTED,
    ),
    "hh_rlhf": (
        {"chosen": transcript(USER, BAD, USER, GOOD), "rejected": transcript(USER, BAD, USER, BAD)},
        {**EXPECTED, "prompt": [USER, BAD, USER]},
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", PAIR_LAYOUTS)
def test_a_layout_by_name(name, stream):
    row, expected = LAYOUTS[name]
    dataset = Dataset.from_list([{"score": 7, **row}] * 3)
    dataset = dataset.to_iterable_dataset() if stream else dataset
    assert [*select_pair_columns(dataset, name)] == [{"score": 7, **expected}] * 3


@pytest.mark.parametrize(
    "columns, row, expected",
    [
        (
            {"prompt": "q", "chosen": "right", "rejected": "wrong"},
            {"q": "How many?", "right": "1", "wrong": "2"},
            {"prompt": "How many?", "chosen": "1", "rejected": "2"},
        ),
        (
            '{"system": "schema", "prompt": "q"}',
            {"schema": SYSTEM["content"], "q": [USER], **TEXTS},
            EXPECTED,
        ),
        # Another `prompt` than the one that is named.
        (
            {"prompt": "question"},
            {"question": "How many?", "prompt": "no", **TEXTS},
            {"prompt": "How many?", **TEXTS},
        ),
        (
            {"prompt": "question"},
            {"question": [USER], "chosen": GOOD["content"], "rejected": [BAD["content"], "x"]},
            {
                "prompt": [USER],
                "chosen": [GOOD],
                "rejected": [[BAD], [{"role": "assistant", "content": "x"}]],
            },
        ),
    ],
    ids=["texts", "json", "other prompt", "several rejected"],
)
def test_columns_by_name(columns, row, expected):
    assert [*select_pair_columns(Dataset.from_list([row]), columns)] == [expected]


def test_empty_system_texts_are_no_messages():
    row, _ = LAYOUTS["orca_dpo"]
    rows = Dataset.from_list([row, {**row, "system": ""}, {**row, "system": None}])
    prompts = [new["prompt"] for new in select_pair_columns(rows, "orca_dpo")]
    assert prompts == [[SYSTEM, USER], [USER], [USER]]


@pytest.mark.parametrize(
    "columns, match",
    [
        ("orca", "`columns` is 'orca'; expected one of orca_dpo, "),
        ('{"question": "prompt"}', "expected one of"),
        ('["prompt"]', "expected one of"),
        ({"prompt": ["system", "question"]}, "expected one of"),
        ({"prompt": "input"}, r"no column \['input'\], only \['chosen', 'question'"),
        ({"prompt": "question", "rejected": "chosen"}, "names a column twice"),
        ("implicit_prompt", "no `prompt`"),
        ("hh_rlhf", "no transcript"),
    ],
)
def test_unusable_columns_are_refused(columns, match):
    rows = Dataset.from_list([{"question": "How many?", **TEXTS}])
    with pytest.raises(InputError, match=match):
        select_pair_columns(rows, columns)


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "How many?", "chosen": [GOOD], "rejected": [BAD]}, WITHOUT_SYSTEM),
        ({"prompt": [USER], **TEXTS}, WITHOUT_SYSTEM),
        (
            {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            EXPECTED,
        ),
        (
            {"prompt": " How many?", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            EXPECTED,
        ),
        ({"prompt": "How many?", "completion": [GOOD]}, {"prompt": [USER], "completion": [GOOD]}),
        ({"prompt": [USER], "completion": "x"}, {"prompt": [USER], "completion": [{**GOOD, "content": "x"}]}),
        ({"prompt": "How many?", **TEXTS}, {"prompt": "How many?", **TEXTS}),
        (EXPECTED, EXPECTED),
        ({"input_ids": [1]}, {"input_ids": [1]}),
    ],
)  # fmt: skip
def test_prompt_and_answers_become_one_kind(row, expected):
    assert unify_row(row, "row 0") == expected
    assert [*unify_rows(Dataset.from_list([row]))] == [expected]
    # A second time there is nothing to do.
    again = Dataset.from_list([expected])
    assert unify_rows(again) is again


@pytest.mark.parametrize(
    "row, match",
    [
        (TEXTS, r"Row 0 has the columns \['chosen', 'rejected'\], but no `prompt`"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "do not begin with the same messages"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "do not begin with the same"),
        (
            {"prompt": "Who?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "another text than the last message",
        ),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]}, "expected all or none"),
        (
            {"prompt": "Who?", "chosen": [{"from": "gpt", "value": "x"}], "rejected": [BAD]},
            "`role` and `content`",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(row, match):
    with pytest.raises(InputError, match=match):
        unify_row(row, "row 0")


def test_a_system_text_that_nothing_reads_is_named(caplog):
    unify_rows(Dataset.from_list([{"prompt": "How many?", "system": "Write SQL.", **TEXTS}]))
    assert "column 'system', which is not part of `prompt`" in caplog.text
    caplog.clear()
    unify_rows(Dataset.from_list([{"prompt": "How many?", "system": " ", **TEXTS}]))
    unify_rows(Dataset.from_list([{**EXPECTED, "system": SYSTEM["content"]}]))
    assert not caplog.text


def build_dpo(tmp_path, rows, **options):
    return SenseDPOTrainer(
        model=build_tiny_model("llama"),
        ref_model=build_tiny_model("llama"),
        args=SenseDPOConfig(output_dir=str(tmp_path), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(rows),
        processing_class=build_tiny_tokenizer(),
    )


def get_ids(dataset):
    return [dataset[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]


def test_preference_training_makes_up_no_prompt(tmp_path):
    """TRL takes what both answers begin with for the prompt, "SELECT " here."""
    row, expected = LAYOUTS["orca_dpo"]
    with pytest.raises(InputError) as error:
        build_dpo(tmp_path, [row] * 4)
    for part in ("['chosen', 'question', 'rejected', 'system']", "select_pair_columns", "orca_dpo"):
        assert part in str(error.value)
    with pytest.raises(InputError, match="no `prompt`"):
        build_dpo(tmp_path, [expected] * 4).evaluate(Dataset.from_list([row]))


@pytest.mark.parametrize(
    "row",
    [
        LAYOUTS["implicit_prompt"][0],
        {"prompt": [SYSTEM, USER], **TEXTS},
        {"prompt": USER["content"], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
    ],
)  # fmt: skip
def test_mixed_pairs_train_as_messages_do(tmp_path, row):
    trainer = build_dpo(tmp_path, [row] * 4)
    expected = build_dpo(tmp_path, [EXPECTED] * 4)
    assert get_ids(trainer.train_dataset) == get_ids(expected.train_dataset)
    prompt_ids, chosen_ids, _ = get_ids(expected.train_dataset)
    tokenizer = build_tiny_tokenizer()
    assert get_token_row(row, tokenizer) == (prompt_ids, chosen_ids)
    trainer.train()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "completion": [GOOD]},
        {"prompt": [USER], "completion": GOOD["content"]},
        {"prompt": [USER], "completion": [USER, GOOD]},
    ],
)
def test_mixed_rows_are_fine_tuned_on_as_messages(tmp_path, row):
    def build(rows):
        return SenseSFTTrainer(
            model=build_tiny_model("llama"),
            args=SenseSFTConfig(output_dir=str(tmp_path), **OPTIONS),
            train_dataset=Dataset.from_list(rows),
            processing_class=build_tiny_tokenizer(),
        ).train_dataset

    ours, expected = build([row]), build([{"prompt": [USER], "completion": [GOOD]}])
    for column in ("input_ids", "labels"):
        assert ours[column] == expected[column]


def test_examples_of_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert json.loads(json.dumps(PAIR_LAYOUTS)) == PAIR_LAYOUTS
