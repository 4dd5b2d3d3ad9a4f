"""Datasets that nothing can be learned from are refused before a model is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from datasets import Dataset, DatasetDict, IterableDataset
from tiny_models import PAIRS, QUESTIONS

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer, SenseSFTConfig, SenseSFTTrainer
from sense_trl.trainers.rows.checks import (
    check_datasets,
    refuse_equal_answers,
    refuse_untrained_rows,
)
from sense_trl.trainers.rows.token_rows import answers_differ

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

TEXT = [("prompt", "completion"), ("text",)]


def with_null(rows: list[dict[str, Any]], column: str, *indices: int) -> list[dict[str, Any]]:
    return [{**row, column: None} if i in indices else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("stream", [False, True])
def test_no_rows_are_refused(stream: bool) -> None:
    rows = Dataset.from_list(QUESTIONS).select([])
    empty = IterableDataset.from_generator(lambda: iter([])) if stream else rows
    with pytest.raises(InputError, match="`train_dataset` has no rows"):
        check_datasets(empty, None, TEXT)
    usable = Dataset.from_list(QUESTIONS)
    with pytest.raises(InputError, match=r"`eval_dataset\['b'\]` has no rows"):
        check_datasets(usable, {"a": usable, "b": rows}, TEXT)


def test_other_columns_are_refused_with_those_that_are_expected() -> None:
    rows = Dataset.from_list([{"question": "q", "sql": "s"}])
    with pytest.raises(InputError) as error:
        check_datasets(rows, None, TEXT)
    for part in ("['question', 'sql']", "`prompt`, `completion`; or `text`", "rename_columns"):
        assert part in str(error.value)
    check_datasets(rows, None, [])
    check_datasets(rows.rename_columns({"sql": "text"}), None, TEXT)


def test_rows_as_a_list_are_told_how_to_become_a_dataset() -> None:
    with pytest.raises(InputError, match=r"`train_dataset` is a list; .*from_list"):
        check_datasets(QUESTIONS, None, TEXT)


def test_several_splits_are_told_to_be_one() -> None:
    splits = DatasetDict(train=Dataset.from_list(QUESTIONS), test=Dataset.from_list(QUESTIONS))
    with pytest.raises(InputError, match=r"a DatasetDict of \['test', 'train'\]; .*\['train'\]"):
        check_datasets(splits, None, TEXT)
    check_datasets(splits["train"], splits, TEXT)


@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_nulls_are_counted_and_named(column: str) -> None:
    rows = Dataset.from_list(with_null(QUESTIONS * 100, column, 3, 1200, 1201, 1300, 1400, 1500))
    with pytest.raises(InputError) as error:
        check_datasets(rows, None, TEXT)
    for part in (
        f"`{column}` of `train_dataset` is null in 6 of 1600 rows",
        "row 3, question_id 'q1-1'",
        "row 1200, ",
        "; and 1 more",
    ):
        assert part in str(error.value)
    # A row that was filtered out is no row.
    check_datasets(rows.filter(lambda row: row[column] is not None), None, TEXT)


def test_an_implicit_prompt_may_be_missing_but_not_null() -> None:
    layout = [("chosen", "rejected")]
    check_datasets(Dataset.from_list(PAIRS).remove_columns("prompt"), None, layout)
    with pytest.raises(
        InputError, match="`prompt` of `eval_dataset` is null in 1 of 8 rows: row 2"
    ):
        rows = Dataset.from_list(PAIRS)
        check_datasets(rows, Dataset.from_list(with_null(PAIRS, "prompt", 2)), layout)


def test_equal_answers_are_counted_and_named() -> None:
    same = {"chosen_ids": [1, 2], "rejected_ids": [1, 2]}
    rows = [{"pair_id": f"p{i}", "chosen_ids": [1, 2], "rejected_ids": [2, 1]} for i in range(2400)]
    refuse_equal_answers(Dataset.from_list(rows), "train")
    for index in (5, 1100, 2399):
        rows[index] = {"pair_id": f"p{index}", **same}
    with pytest.raises(InputError) as error:
        refuse_equal_answers(Dataset.from_list(rows), "train")
    for part in (
        "of the train dataset are the same answer in 3 of 2400 pairs",
        "row 5, pair_id 'p5'; row 1100, pair_id 'p1100'; row 2399, pair_id 'p2399'.",
        "`dataset.filter(lambda row: answers_differ(row, tokenizer))`",
    ):
        assert part in str(error.value)
    kept = [row for row in rows if answers_differ(row, None)]
    assert len(kept) == 2397
    stream = refuse_equal_answers(Dataset.from_list(rows).to_iterable_dataset(), "train")
    with pytest.raises(InputError, match="pair_id 'p5'"):
        list(stream)


# ------------------------------------------------------------------------------- in trainers


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        (with_null(QUESTIONS, "completion", 1), "`completion` of `train_dataset` is null"),
        ([{"question": "q", "sql": "s"}], "has the columns"),
    ],
)
def test_fine_tuning_refuses_them(train_sft: Any, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_sft(rows=rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        (with_null(PAIRS, "rejected", 1), "`rejected` of `train_dataset` is null"),
        ([{"prompt": "p", "chosen": "c"}], "has the columns"),
        ([*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}], "1 of 9 pairs: row 8, .*'q0'"),
        # One of several rejected answers.
        (
            [{**pair, "rejected": [pair["rejected"], pair["chosen"]]} for pair in PAIRS[:2]],
            "2 of 4 pairs: row 1, question_id 'q0'; row 3",
        ),
    ],
)
def test_preference_training_refuses_them(train: Any, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(["cdpo"], pairs=rows)


def test_a_stream_is_refused_at_its_first_equal_pair(train: Any) -> None:
    rows = [PAIRS[0], {**PAIRS[1], "rejected": PAIRS[1]["chosen"]}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(InputError, match="question_id 'q1'"):
        train(["cdpo"], pairs=stream, max_steps=2)


TRIMMING = tiny_models.CHAT_TEMPLATE.replace("['content']", "['content'] | trim")


@pytest.mark.parametrize("is_list", [False, True])
def test_the_advised_filter_removes_what_a_template_trims(tmp_path: Path, is_list: bool) -> None:
    """Texts that differ, and are the same tokens."""
    tokenizer = tiny_models.build_tiny_tokenizer()
    tokenizer.chat_template = TRIMMING

    def make(pair: dict[str, Any], rejected: str) -> dict[str, Any]:
        answers: Any = [{"role": "assistant", "content": rejected}]
        return {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [answers] if is_list else answers,
        }

    usable = [make(pair, pair["rejected"]) for pair in PAIRS]
    equal = [make(pair, f" {pair['chosen']}\n") for pair in PAIRS[:2]]

    def build(rows: Dataset) -> SenseDPOTrainer:
        return SenseDPOTrainer(
            model=tiny_models.build_tiny_model("llama"),
            ref_model=tiny_models.build_tiny_model("llama"),
            args=SenseDPOConfig(output_dir=str(tmp_path), **tiny_models.OPTIONS),
            train_dataset=rows,
            processing_class=tokenizer,
        )

    rows = Dataset.from_list([*usable[:3], *equal, *usable[3:]])
    with pytest.raises(InputError) as error:
        build(rows)
    advised = "lambda row: answers_differ(row, tokenizer)"
    assert "2 of 10 pairs" in str(error.value)
    assert f"`dataset.filter({advised})`" in str(error.value)
    kept = rows.filter(lambda row: answers_differ(row, tokenizer))
    assert kept.to_list() == usable
    assert len(build(kept).train_dataset) == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("column", "ids", "noun"),
    [
        ("labels", [-100, -100, -100], "rows"),
        # Nothing predicts the first token.
        ("labels", [5, -100], "rows"),
        ("rejected_ids", [], "pairs"),
    ],
)
def test_rows_without_a_token_to_learn_are_refused(
    column: str, ids: list[int], noun: str, stream: bool
) -> None:
    rows = Dataset.from_list([{"id": "a", column: [-100, 6]}] * 3 + [{"id": "b", column: ids}])
    dataset = rows.to_iterable_dataset() if stream else rows
    found = "id 'b'" if stream else f"1 of 4 {noun}: row 3, id 'b'"
    with pytest.raises(InputError, match=f"`{column}` of the eval .* no token to learn in {found}"):
        list(refuse_untrained_rows(dataset, "eval", column, noun))
    usable = rows.select(range(3))
    assert refuse_untrained_rows(usable, "eval", column, noun) is usable


def test_an_answer_of_nothing_but_its_prompt_is_not_fine_tuned_on(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}] * 3
    untrained = {"input_ids": [5, 6, 2], "labels": [-100] * 3}
    with pytest.raises(InputError, match="1 of 4 rows: row 3"):
        SenseSFTTrainer(
            model=tiny_models.build_tiny_model("llama"),
            args=SenseSFTConfig(output_dir=str(tmp_path), **tiny_models.OPTIONS),
            train_dataset=Dataset.from_list([*rows, untrained]),
            processing_class=tiny_models.build_tiny_tokenizer(),
        )
