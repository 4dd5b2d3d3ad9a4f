"""A head learns what texts are about, from labels and from a teacher."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.trainers.linking.head import LinkerHead
from sense_trl.trainers.linking.training import (
    DISTILLATIONS,
    LinkerExample,
    LinkerTeaching,
    LinkerTrainingConfig,
    teach,
    train_linker_head,
)

HIDDEN = 12
CONFIG = LinkerTrainingConfig(
    num_epochs=12, rank=8, batch_size=8, dropout=0.0, learning_rate=1e-2, weight_decay=0.0
)


def make_examples(num: int, *, seed: int = 0, hidden: int = HIDDEN) -> list[LinkerExample]:
    """Texts that hold a noisy copy of the states of the items that they are about."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    examples = []
    for number in range(num):
        num_items = 4 + number % 3
        items = draw(num_items, hidden)
        labels = torch.zeros(num_items, dtype=torch.bool)
        labels[number % num_items] = True
        words = torch.cat([items[labels] + 0.1 * draw(1, hidden), 0.3 * draw(2, hidden)])
        kinds = (torch.arange(num_items) > 0).long()
        examples.append(LinkerExample(f"q{number}", items, words, kinds, labels))
    return examples


def accuracy(head: LinkerHead, examples: list[LinkerExample]) -> float:
    with torch.no_grad():
        best = [head(e.items, e.words, e.kinds)[0] - head.bias[e.kinds] for e in examples]
    right = [bool(e.labels[z.argmax()]) for e, z in zip(examples, best, strict=True)]
    return sum(right) / len(right)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 7))
def test_a_map_adds_up_to_its_logit(seed: int, num_items: int, num_words: int) -> None:
    torch.manual_seed(seed)
    head = LinkerHead(HIDDEN, rank=4).double()
    torch.nn.init.normal_(head.bias)
    items, words = torch.randn(num_items, HIDDEN).double(), torch.randn(num_words, HIDDEN).double()
    kinds = torch.arange(num_items) % 2
    logits, maps = head(items, words, kinds)
    torch.testing.assert_close(maps.mean(-1) + head.bias[kinds], logits)
    # Words that are not there change nothing.
    padded = torch.cat([maps, torch.full((num_items, 2), float("nan")).double()], -1)
    mask = torch.tensor([True] * num_words + [False] * 2)
    torch.testing.assert_close(head.get_logits(padded, kinds, mask), logits)


def test_one_word_may_name_an_item() -> None:
    head = LinkerHead(HIDDEN, pooling="logsumexp")
    maps = torch.tensor([[0.0, 0.0, 9.0], [3.0, 3.0, 3.0]])
    # log((1 + 1 + e^9) / 3), where the mean is 3 for both.
    expected = [torch.log((2 + torch.exp(torch.tensor(9.0))) / 3), 3.0]
    found = head.get_logits(maps, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([float(v) for v in expected])
    with pytest.raises(InputError, match="`pooling` is 'max'"):
        LinkerHead(HIDDEN, pooling="max")


@pytest.mark.parametrize("focal", [False, True])
def test_a_head_learns_from_labels(focal: bool) -> None:
    head = train_linker_head(make_examples(200), replace(CONFIG, focal=focal))
    assert accuracy(head, make_examples(60, seed=1)) > 0.7


def test_the_same_seed_gives_the_same_head() -> None:
    examples = make_examples(20)
    config = replace(CONFIG, num_epochs=2, dropout=0.2)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = (train_linker_head(examples, config) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = train_linker_head(examples, replace(config, seed=1))
    assert torch.equal(first.item_projection.weight, second.item_projection.weight)
    assert not torch.equal(first.item_projection.weight, other.item_projection.weight)


@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_a_head_learns_from_a_teacher_of_another_width(distillation: str) -> None:
    examples, wide = make_examples(40), make_examples(40, seed=3, hidden=20)
    teacher = train_linker_head(
        [replace(w, labels=e.labels, kinds=e.kinds) for w, e in zip(wide, examples, strict=True)],
        replace(CONFIG, rank=6),
    )
    teachings = {e.key: teach(teacher, w) for e, w in zip(examples, wide, strict=True)}
    config = replace(CONFIG, num_epochs=4, distillation=distillation)

    def distance(head: LinkerHead) -> float:
        """Mean cosine distance of maps."""
        with torch.no_grad():
            pairs = [
                (head(e.items, e.words, e.kinds)[1], teachings[e.key].maps.float())
                for e in examples
            ]
        return float(
            torch.stack([1 - torch.cosine_similarity(s, t, dim=-1).mean() for s, t in pairs]).mean()
        )

    silent = replace(config, distillation_weight=0.0)
    alone = train_linker_head(examples, silent, teachings=teachings)
    plain = train_linker_head(examples, replace(config, distillation=None))
    torch.testing.assert_close(alone.word_projection.weight, plain.word_projection.weight)
    taught = train_linker_head(
        examples, replace(config, distillation_weight=5.0), teachings=teachings
    )
    assert not torch.allclose(taught.word_projection.weight, plain.word_projection.weight)
    if distillation == "cam":
        assert distance(taught) < distance(plain) - 0.02


def test_what_a_teacher_did_not_say_is_named() -> None:
    examples = make_examples(3)
    config = replace(CONFIG, distillation="cam")
    with pytest.raises(InputError, match="has said nothing of 'q0'"):
        train_linker_head(examples, config)
    other = LinkerTeaching(torch.zeros(9, 9), torch.zeros(9))
    with pytest.raises(InputError, match=r"map of 'q0' is of \(9, 9\) items and words"):
        train_linker_head(examples, config, teachings={e.key: other for e in examples})
    with pytest.raises(InputError, match="`examples` is empty"):
        train_linker_head([])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("dropout", 1.0),
        ("distillation", "maps"),
    ],
)
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"`{name}` is {value!r}"):
        LinkerTrainingConfig(**{name: value})  # type: ignore[arg-type]
