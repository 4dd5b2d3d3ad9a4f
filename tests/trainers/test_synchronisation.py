"""No step reads numbers of the device's, at which the host would wait for it.

A GPU is stood in for by a kind of tensor that notes whenever a value of it is asked for: the batch
is made of it when it is prepared, and what is computed from it is of this kind too.
"""

from __future__ import annotations

import traceback

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import OPTIONS, QUESTIONS, build_tiny_model, build_tiny_tokenizer

from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers import KIDConfig, KIDTrainer
from sense_trl.trainers.compat.deferred_metrics import read_metrics

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

# What CUDA's `set_sync_debug_mode` finds: reads of values, and shapes that depend on them.
READS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"),
    *("nonzero", "unique", "_unique2", "masked_select", "argwhere", "equal", "allclose"),
}
reads: list[str] = []


class DeviceTensor(torch.Tensor):
    """Stands in for a tensor on a GPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(index, DeviceTensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], tuple) else args[1:2])
        )
        if name in READS or by_mask:
            stack = traceback.extract_stack()[:-1]
            # Who asked: the innermost of ours and the libraries'.
            names = [f.filename for f in stack]
            own = next(n for n in reversed(names) if "torch/" not in n and "_tensor.py" not in n)
            if "/sense_trl/" in own:
                frame = next(f for f in reversed(stack) if "/sense_trl/" in f.filename)
                reads.append(f"{own.rsplit('/', 1)[-1]}:{frame.name}: {name}")
        return super().__torch_function__(func, types, args, kwargs or {})


def put(value):
    """A value of a batch on the device."""
    if isinstance(value, PrefixTree):
        return value._replace(lambda tensor: tensor.as_subclass(DeviceTensor))
    return value.as_subclass(DeviceTensor) if isinstance(value, torch.Tensor) else value


def get_reads(trainer, monkeypatch, size=4):
    """Who reads a value of the device's in a step, forward and backward."""
    monkeypatch.setattr(PrefixTree, "to", lambda tree, *args, **kwargs: put(tree))
    examples = [trainer.train_dataset[i] for i in range(size)]
    batch = {k: put(v) for k, v in trainer._prepare_inputs(trainer.data_collator(examples)).items()}
    trainer.model.train()
    reads.clear()
    trainer.compute_loss(trainer.model, batch).backward()
    found = list(reads)
    reads.clear()
    return found


def test_the_stand_in_notes_reads() -> None:
    reads.clear()
    read_metrics({"loss": [put(torch.tensor(1.0))]})
    assert reads == ["deferred_metrics.py:read_metrics: tolist"]
    # Those of others are not ours.
    assert put(torch.tensor([True, False])).any().item()
    assert len(reads) == 1


@pytest.mark.parametrize("lora", [True, False])
def test_sft(train_sft, monkeypatch, lora) -> None:
    assert get_reads(train_sft(start=False, lora=lora), monkeypatch) == []


@pytest.mark.parametrize("loss_type", [["sigmoid"], ["cdpo", "sft"], ["dpop"]])
def test_dpo(train, monkeypatch, loss_type) -> None:
    trainer = train(loss_type, start=False)
    assert get_reads(trainer, monkeypatch) == []


def build_kid(tmp_path, teacher="llama", **options):
    return KIDTrainer(
        model=build_tiny_model("llama"),
        teacher_model=build_tiny_model(teacher, seed=1),
        args=KIDConfig(str(tmp_path / "out"), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(QUESTIONS),
        processing_class=build_tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl", "generalized_jsd"])
def test_distillation_on_gold(tmp_path, monkeypatch, loss) -> None:
    trainer = build_kid(tmp_path, imperfect_data=False, kd_loss_type=loss)
    assert get_reads(trainer, monkeypatch) == []


def test_kid_reads_what_the_student_fills_in_and_nothing_else(tmp_path, monkeypatch) -> None:
    found = get_reads(build_kid(tmp_path), monkeypatch)
    assert found == ["rewriter.py:_predict: tolist"]


def test_metrics_are_read_together_and_keep_their_places() -> None:
    metrics = {"loss": [1.0, torch.tensor(2.0)], "kd": [torch.tensor(3, dtype=torch.int64)]}
    read_metrics(metrics)
    assert metrics == {"loss": [1.0, 2.0], "kd": [3.0]}
    assert all(isinstance(v, float) for values in metrics.values() for v in values)
    read_metrics(metrics)
