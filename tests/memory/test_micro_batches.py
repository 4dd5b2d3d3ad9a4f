"""The largest micro-batch of a training: by hand, against the obvious search, in trainers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from linked_rows import ROWS
from tiny_models import PAIRS, QUESTIONS

from sense_trl.memory import check as memory_check
from sense_trl.memory import micro_batches
from sense_trl.memory.check import find_changes, warn_of_memory
from sense_trl.memory.estimate import build_batch, estimate_memory
from sense_trl.memory.micro_batches import Example, TrainingExamples, read_examples
from sense_trl.memory.simulation import ModelSettings
from sense_trl.memory.training_setup import TrainingSetup, get_trainer_setup
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def make(*examples: tuple[list[int], list[list[int]]], order: list[int] | None = None) -> Any:
    arrays: list[Example] = [
        (np.array(prompt), [np.array(answer) for answer in answers]) for prompt, answers in examples
    ]
    return TrainingExamples.from_examples(arrays, np.array(order or range(len(examples))))


FOUR = (
    ([1, 2, 3, 4], [[5]]),
    ([1, 2, 3, 4], [[6, 7]]),
    ([8, 9, 10], [[5]]),
    ([1, 9], [[5, 5, 5]]),
)


# ------------------------------------------------------------------------------------ by hand


def test_a_batch_that_shares_its_prompt_is_smaller_than_one_of_shorter_examples() -> None:
    # 0 and 1 are seven nodes; 2 and 3 are nine tokens without one in common.
    tree = make(*FOUR).build_largest_batch(2, share=True)
    assert tree.num_nodes == 9
    # Apart, 0 and 1 are two rows of six.
    assert make(*FOUR).build_largest_batch(2, share=False).input_ids.shape == (2, 6)
    # In another order the batches are others: 0 and 2 are nine too, 1 and 3 ten.
    other = make(*FOUR, order=[0, 2, 1, 3])
    assert other.build_largest_batch(2, share=True).num_nodes == 10
    assert make(*FOUR).build_largest_batch(1, share=True).num_nodes == 6
    assert make(*FOUR).longest == (4, 2)


def test_answers_are_trained_and_prompts_are_not() -> None:
    tree = make(([1, 2], [[3, 4], [3]])).build_largest_batch(1, share=True)
    assert tree.input_ids.tolist() == [[1, 2, 3, 4]]
    assert tree.target_ids.tolist() == [3, 4]


def test_examples_that_are_too_long_leave_their_batch() -> None:
    examples = make(*FOUR)
    assert examples.lengths.tolist() == [5, 6, 4, 5]
    # 0 is left of the first batch.
    assert examples.build_largest_batch(2, share=False, max_length=5).input_ids.shape == (2, 5)
    assert examples.build_largest_batch(2, share=False, max_length=4).input_ids.shape == (1, 4)


def test_a_rewritten_answer_shares_the_prompt_alone() -> None:
    tree = make(([1, 2], [[3, 4, 5]])).with_rewrites().build_largest_batch(1, share=True)
    assert tree.num_nodes == 2 + 3 + 3


def test_texts_of_a_linker_are_rows_without_an_answer() -> None:
    texts = [[[8, 9], [8, 8, 8]], None, [[1, 2, 3, 4, 5, 6, 7]], []]
    column = [own and [{"input_ids": ids, "words": [[0]]} for ids in own] for own in texts]
    examples = make(*FOUR).with_texts(Dataset.from_dict({"linked_texts": column}))
    assert examples.text_lengths.tolist() == [[2, 3], [0, 0], [7, 0], [0, 0]]
    # 0 and 1 are seven nodes, and four in their texts; 2 and 3 nine, and the text begins as 3 does.
    tree = examples.build_largest_batch(2, share=True)
    assert tree.num_nodes == 9 + 6
    assert tree.sequence_nodes.shape == (3, 7)
    assert sorted(tree.target_ids.tolist()) == [5, 5, 5, 5]
    # Apart, four rows of six are more than three of seven.
    assert examples.build_largest_batch(2, share=False).input_ids.shape == (4, 6)
    assert examples.build_largest_batch(2, share=False, max_length=5).input_ids.shape == (3, 7)


# -------------------------------------------------------------------------------- properties

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(
    examples=st.lists(
        st.tuples(TOKENS, st.lists(TOKENS, min_size=2, max_size=2)), min_size=1, max_size=12
    ),
    batch_size=st.integers(1, 5),
    share=st.booleans(),
    data=st.data(),
)
def test_no_batch_of_the_epoch_is_larger(
    examples: list[Any], batch_size: int, share: bool, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(examples))))
    trees, distinct = [], []
    for start in range(0, len(order), batch_size):
        batch = [examples[index] for index in order[start : start + batch_size]]
        sequences = [prompt + answer for prompt, answers in batch for answer in answers]
        trees.append(PrefixTree.from_sequences(sequences, share=share))
        prefixes = {tuple(text[: i + 1]) for text in sequences for i in range(len(text))}
        distinct.append(len(prefixes))
    found = make(*examples, order=order).build_largest_batch(batch_size, share=share)
    sizes = [tree.input_ids.numel() for tree in trees]
    if not share:
        assert found.input_ids.numel() == max(sizes)
        return
    # Rows are laid out for the batches of the most tokens alone.
    assert found.input_ids.numel() in sizes
    most = [size for size, count in zip(sizes, distinct, strict=True) if count == max(distinct)]
    assert found.input_ids.numel() >= min(most)


@given(st.lists(TOKENS, min_size=1, max_size=8))
def test_distinct_tokens_are_the_prefixes(sequences: list[list[int]]) -> None:
    prefixes = {tuple(text[: i + 1]) for text in sequences for i in range(len(text))}
    assert micro_batches._count_distinct([np.array(text) for text in sequences]) == len(prefixes)


# ------------------------------------------------------------------------------- in a trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def build_trainer(kind: str, model: str, folder: Path, rows: Any, **options: Any) -> Any:
    trainer_class, config_class = {
        "sft": (SenseSFTTrainer, SenseSFTConfig),
        "dpo": (SenseDPOTrainer, SenseDPOConfig),
        "kd": (KIDTrainer, KIDConfig),
    }[kind]
    defaults = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2}
    if kind == "kd":
        defaults["teacher_model_name_or_path"] = model
    return trainer_class(
        model=model,
        args=config_class(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=tiny_models.build_tiny_tokenizer(),
    )


@pytest.mark.parametrize(
    ("kind", "rows", "options"),
    [
        ("sft", QUESTIONS, {"group_by_columns": ["db_id"]}),
        ("sft", ROWS, {"group_by_columns": ["db_id"], "link_weight": 0.1}),
        ("sft", ROWS, {"prefix_sharing": "false", "link_weight": 0.1}),
        ("dpo", PAIRS, {"group_by_columns": ["question_id"]}),
    ],
    ids=["sft", "with a linker", "with a linker, apart", "dpo"],
)
def test_it_is_the_largest_batch_of_the_training(
    kind: str, rows: Any, options: dict[str, Any], model: str, tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 4, **options}
    trainer = build_trainer(kind, model, tmp_path, rows, **options)
    setup, *_ = get_trainer_setup(trainer)
    found = build_batch(setup)
    batches = [batch.get("prefix_tree") or batch for batch in trainer.get_train_dataloader()]
    inputs = [
        batch["input_ids"] if isinstance(batch, dict) else batch.input_ids for batch in batches
    ]
    assert len(batches) == len(rows) // 4
    number = max(range(len(batches)), key=lambda number: inputs[number].numel())
    assert found.input_ids.shape == inputs[number].shape
    if setup.prefix_sharing:
        assert len(found.target_ids) == len(batches[number].target_ids)


def test_a_schema_that_a_batch_shares_is_estimated_once(model: str, tmp_path: Path) -> None:
    schema = "CREATE TABLE t (" + ", ".join(f"column_{i} INTEGER" for i in range(60)) + ")"
    rows = [
        {
            "db_id": f"d{db}",
            "prompt": schema.replace("column", f"d{db}") + f"\nIs it {i}?\n",
            "completion": f"SELECT {i} FROM t",
        }
        for db in range(4)
        for i in range(8)
    ]
    tokens = {}
    for name, columns in (("grouped", ["db_id"]), ("mixed", None)):
        options = {"per_device_train_batch_size": 8, "group_by_columns": columns}
        trainer = build_trainer("sft", model, tmp_path / name, rows, **options)
        setup, config, _ = get_trainer_setup(trainer)
        tokens[name] = estimate_memory(setup, config).tokens
    assert tokens["grouped"] < 1.5 * max(setup.examples.lengths)
    assert tokens["mixed"] > 2 * tokens["grouped"]


def test_distillation_has_a_rewritten_answer_besides_each(model: str, tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 1}
    plain = build_trainer("kd", model, tmp_path / "a", QUESTIONS, imperfect_data=False, **options)
    imperfect = build_trainer("kd", model, tmp_path / "b", QUESTIONS, **options)
    setups = [get_trainer_setup(trainer)[0] for trainer in (plain, imperfect)]
    one, two = (build_batch(setup).num_nodes for setup in setups)
    assert two - one == setups[0].completion_tokens


def test_the_estimate_leaves_the_random_numbers_of_training_alone(
    model: str, tmp_path: Path
) -> None:
    trainer = build_trainer("dpo", model, tmp_path, PAIRS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    examples = read_examples(trainer)
    assert examples is not None
    assert sorted(examples.order) == list(range(len(PAIRS)))
    assert torch.equal(torch.rand(3), expected)


def test_a_stream_is_not_read_ahead(model: str, tmp_path: Path, caplog: Any) -> None:
    rows = Dataset.from_list(QUESTIONS).to_iterable_dataset()
    trainer = build_trainer("sft", model, tmp_path, rows)
    assert read_examples(trainer) is None
    with caplog.at_level(logging.WARNING, logger=memory_check.__name__):
        assert warn_of_memory(trainer) is not None
    assert "could not be estimated" not in caplog.text


# ------------------------------------------------------------------------------------ advice


def test_what_is_left_out_by_a_shorter_limit_is_said() -> None:
    examples = make(*[(list(range(i * 100, i * 100 + 20 * i)), [[9, 9]]) for i in range(1, 6)])
    setup = TrainingSetup("sft", ModelSettings(), 1, *examples.longest, examples=examples)
    ((options, shorter),) = memory_check._shorten(setup)
    # Two of five have at most 51 tokens, 22 and 42.
    assert options == "max_length: 51, max_dropped_fraction: 0.6"
    assert build_batch(shorter).input_ids.shape == (1, 42)
    alike = make(*[(list(range(40)), [[9, 9]])] * 3)
    setup = TrainingSetup("sft", ModelSettings(), 1, 40, 2, examples=alike)
    assert [*memory_check._shorten(setup)] == []


def test_sharing_is_advised_where_it_was_switched_off(model: str) -> None:
    from transformers import AutoConfig

    examples = make(*[(list(range(200)), [[i]]) for i in range(4)])
    setup = TrainingSetup("sft", ModelSettings(), 4, 200, 1, examples=examples)
    config = AutoConfig.from_pretrained(model)
    apart = TrainingSetup(
        "sft", ModelSettings(), 4, 200, 1, prefix_sharing=False, examples=examples
    )
    shared = estimate_memory(setup, config).total_bytes
    found = find_changes(apart, config, shared)
    assert found[0].options == "prefix_sharing: auto"
    assert found[0].estimate.total_bytes == shared
