"""A linker that is trained along with the model whose states it reads."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from linked_rows import ASKED, ROWS, SCHEMAS, TEXTS
from tiny_models import HIDDEN_SIZE, QUESTIONS, assert_same_weights, get_history
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sense_trl.collators import LINKED_TEXTS, PREFIX_TREE
from sense_trl.errors import InputError
from sense_trl.steps.linking import TrainedLinker, write_linked_texts
from sense_trl.trainers import KIDConfig, SenseSFTConfig
from sense_trl.trainers.linking import StateReader, joint
from sense_trl.trainers.linking.joint import JointLinking, _make_example
from sense_trl.trainers.linking.training import LinkerTrainingConfig, get_terms

# Of sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 5e-5}


def get_loss(trainer: Any, num_rows: int = 4) -> torch.Tensor:
    """The loss of the first rows, with its gradients in the parameters."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(num_rows)])
    assert (PREFIX_TREE in batch) == trainer.prefix_sharing.is_on
    trainer.model.train()
    loss: torch.Tensor = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_and_gradients_are_those_of_texts_that_are_read_apart(
    train_sft: Any, architecture: str, shares: bool
) -> None:
    options = {"lora": False, "start": False, "architecture": architecture}
    plain = train_sft(rows=ROWS, prefix_sharing=shares, **options)
    linked = train_sft(rows=ROWS, prefix_sharing=shares, link_weight=0.5, **options)
    linked.create_optimizer()
    head = linked.linking.head
    assert head.item_projection.weight.any()
    head.dropout.p = 0.0
    found = get_loss(linked)
    of_head = {name: p.grad.clone() for name, p in head.named_parameters()}
    head.zero_grad()

    expected = get_loss(plain)
    examples = []
    for (text,) in TEXTS[:4]:
        output = plain.model(torch.tensor([text["input_ids"]]), output_hidden_states=True)
        # Of two layers the first is nearest to two thirds.
        examples.append(_make_example(text, output.hidden_states[1][0]))
    config = LinkerTrainingConfig()
    terms = dict(get_terms(head, examples, config, linked.linking._weights, None, None))
    loss = 0.5 * torch.stack(list(terms.values())).sum()
    loss.backward()
    torch.testing.assert_close(found, expected + loss.detach())
    others = dict(plain.model.named_parameters())
    for name, parameter in linked.model.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, **CLOSE)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(of_head[name], parameter.grad, **CLOSE)


def test_a_linker_learns_along_goes_on_where_it_stopped_and_is_found_beside_the_model(
    train_sft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random states differ in directions that dropout drowns.
    hurried = partial(LinkerTrainingConfig, learning_rate=0.005, dropout=0.0)
    monkeypatch.setattr(joint, "LinkerTrainingConfig", hurried)
    options = {"rows": ROWS, "link_weight": 1.0, "max_steps": 8, "gradient_accumulation_steps": 2}
    options |= {"save_strategy": "steps", "save_steps": 4}
    whole = train_sft(**options)
    # Two steps are an epoch.
    losses = get_history(whole, "losses/link")
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    resumed = train_sft(resume_from=str(tmp_path / "out" / "checkpoint-4"), **options)
    assert_same_weights(whole, resumed)
    for name, tensor in whole.linking.head.state_dict().items():
        assert torch.equal(tensor, resumed.linking.head.state_dict()[name]), name
    # Beside an adapter, too, it reads what it was trained on, in the same words.
    loaded = TrainedLinker.load(tmp_path / "out" / "checkpoint-8")
    text, question = TEXTS[0][0], ASKED[0]
    reader = StateReader(whole.model.eval(), whole.processing_class)
    with torch.no_grad():
        example = _make_example(text, reader.read_row(text["input_ids"]))
        head = whole.linking.head.eval()
        logits, _ = head(example.items, example.words, example.kinds, example.relations)
    scores = loaded.of(SCHEMAS[question.db_id]).score(f"\n{question.question}")
    assert list(scores.values()) == pytest.approx(logits.sigmoid().tolist(), abs=1e-4)


class OneDevice(TorchDispatchMode):
    """Fails where an operation is given tensors of several devices, as a GPU does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if "copy" not in func.name():
            devices = {tensor.device.type for tensor in tensors if tensor.dim()}
            assert len(devices) < 2, f"{func.name()} sees {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shares", [True, False])
def test_the_head_computes_where_the_states_are(
    train_sft: Any, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of this device there is none.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    trainer = train_sft(rows=ROWS, link_weight=1.0, start=False)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    tree = batch[PREFIX_TREE] if shares else None
    shape = (batch if tree is None else vars(tree))["input_ids"].shape
    states = torch.empty(*shape, HIDDEN_SIZE, device="meta", requires_grad=True)
    trainer.linking.head.to("meta")
    with OneDevice():
        loss = trainer.linking.get_loss(states, batch[LINKED_TEXTS].texts, tree)
        loss.backward()
    assert (loss.device.type, loss.shape) == ("meta", ())
    assert states.grad is not None and states.grad.is_meta


def test_optimizers_with_moments_in_8_bits_take_the_head(train_sft: Any) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.50", reason="those of a CPU are newer")
    trainer = train_sft(rows=ROWS, link_weight=1.0, optim="adamw_8bit")
    head = trainer.linking.head
    for parameter in head.parameters():
        moment = trainer.optimizer.state[parameter]["state1"]
        assert moment.dtype == (torch.uint8 if parameter.numel() >= 4096 else torch.float32)
    start = train_sft(rows=ROWS, link_weight=1.0, start=False)
    start.create_optimizer()
    before = start.linking.head.state_dict()
    changed = {name for name, own in head.named_parameters() if not own.equal(before[name])}
    assert {"item_projection.weight", "word_projection.weight", "bias"} <= changed


def test_rows_that_are_only_evaluated_need_no_linked_texts(train_sft: Any) -> None:
    plain = train_sft(rows=ROWS, eval_rows=QUESTIONS[:4], start=False).evaluate()
    linked = train_sft(rows=ROWS, eval_rows=ROWS[:4], link_weight=1.0, start=False)
    assert linked.evaluate()["eval_loss"] == pytest.approx(plain["eval_loss"])


def test_rows_may_have_no_linked_texts(train_sft: Any) -> None:
    rows = [{**ROWS[0], LINKED_TEXTS: None}, *ROWS[1:]]
    trainer = train_sft(rows=rows, link_weight=1.0, start=False)
    trainer.create_optimizer()
    assert get_loss(trainer).isfinite()


def test_a_checkpoint_without_a_linker_is_refused(train_sft: Any, tmp_path: Path) -> None:
    options = {"rows": ROWS, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    train_sft(**options)
    checkpoint = str(tmp_path / "out" / "checkpoint-1")
    with pytest.raises(InputError, match=r"`link_weight` is 1\.0, but '.*checkpoint-1' holds no"):
        train_sft(link_weight=1.0, resume_from=checkpoint, **options)


def test_what_trains_no_linker_says_so(train_sft: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`link_weight` is 1\.0, but the dataset has no column"):
        train_sft(link_weight=1.0, start=False)
    with pytest.raises(InputError, match="`packing` and `padding_free` lay out rows"):
        train_sft(rows=ROWS, link_weight=1.0, start=False, packing=True)
    trainer = train_sft(rows=ROWS, link_weight=1.0, start=False)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(InputError, match="DeepSpeed and FSDP step and save the parameters"):
        JointLinking(trainer)
    trainer = train_sft(rows=ROWS, link_weight=1.0, start=False)
    trainer.model.requires_grad_(False)
    with pytest.raises(InputError, match=r"carry no gradient.*train weights of its first 1 layers"):
        get_loss(trainer)
    with pytest.raises(InputError, match="`link_weight` is -1"):
        SenseSFTConfig(str(tmp_path), link_weight=-1.0)
    with pytest.raises(InputError, match="`KIDTrainer` trains no linker"):
        KIDConfig(str(tmp_path), link_weight=1.0, use_cpu=True, bf16=False)
    with pytest.raises(InputError, match="the linker's text of the question 'q0-0' has"):
        write_linked_texts(ASKED[:1], SCHEMAS, tiny_models.build_tiny_tokenizer(), max_length=20)
