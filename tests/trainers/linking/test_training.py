"""A head learns what texts are about, from labels and from a teacher."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.trainers.linking.head import ItemRelations, LinkerHead
from sense_trl.trainers.linking.training import (
    DISTILLATIONS,
    LinkerExample,
    LinkerTeaching,
    LinkerTrainingConfig,
    _join,
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


def make_relations(num_items: int, num_words: int) -> ItemRelations:
    """Every third item is a whole with two parts, which lead to the wholes before and behind."""
    parents = torch.arange(num_items) // 3 * 3
    linked = torch.stack([parents - 3, parents + 3], 1)
    linked[
        (linked < 0) | (linked >= num_items) | (parents == torch.arange(num_items))[:, None]
    ] = -1
    places = torch.tensor([(i, u) for i in range(num_items) for u in range(i % 2, num_words, 2)])
    return ItemRelations(parents, linked, places.view(-1, 2), torch.randn(len(places), 2).double())


def randomise(head: LinkerHead) -> LinkerHead:
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.double()


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_a_map_adds_up_to_its_logit(
    seed: int, num_items: int, num_words: int, is_related: bool
) -> None:
    torch.manual_seed(seed)
    head = randomise(LinkerHead(HIDDEN, rank=4, num_features=2))
    items, words = torch.randn(num_items, HIDDEN).double(), torch.randn(num_words, HIDDEN).double()
    kinds = (torch.arange(num_items) % 3 > 0).long()
    relations = make_relations(num_items, num_words) if is_related else None
    logits, maps = head(items, words, kinds, relations)
    # Without words an item has the rest of its logit, up to which of two is smaller.
    rest = logits - maps.mean(-1)
    empty = head(items, words, kinds, relations, torch.zeros(num_words, dtype=torch.bool))
    assert not empty[1].any()
    if relations is None or num_items <= 3:
        torch.testing.assert_close(rest, empty[0])
    # Words and items that are not there change nothing, wherever the text is in a batch.
    padded = torch.cat([words, torch.full((2, HIDDEN), 7.0).double()])
    mask = torch.tensor([True] * num_words + [False] * 2)
    more = torch.cat([items, torch.ones(1, HIDDEN).double()])
    batch = _join([relations, relations])
    if batch is not None:
        batch = replace(batch, parents=pad(batch.parents, 0), linked=pad(batch.linked, -1))
    twice = head(
        torch.stack([more, more]), torch.stack([padded, padded]), pad(torch.stack([kinds] * 2), -1),
        batch, torch.stack([mask, mask]),
    )  # fmt: skip
    for row in range(2):
        torch.testing.assert_close(twice[0][row, :num_items], logits)
        torch.testing.assert_close(twice[1][row, :num_items, :num_words], maps)


def pad(values: torch.Tensor, value: int) -> torch.Tensor:
    """One more item in each row."""
    shape = (values.shape[0], 1, *values.shape[2:])
    return torch.cat([values, torch.full(shape, value)], 1)


def test_parts_add_their_whole_and_what_they_lead_to() -> None:
    """A table of logit 2 with a column and a key to a table of logit 1, by hand."""
    head = LinkerHead(1, rank=1, num_features=1)
    with torch.no_grad():
        head.item_projection.weight.fill_(1.0)
        head.word_projection.weight.fill_(1.0)
        head.item_projection.bias.zero_()
        head.word_projection.bias.zero_()
        head.likeness_weight.fill_(0.25)
        head.bias.copy_(torch.tensor([0.0, -1.0]))
        head.size_weight.copy_(torch.tensor([0.0, 0.5]))
        head.parent_weight.fill_(0.5)
        head.link_weight.fill_(0.1)
    items, words = torch.tensor([[2.0], [3.0], [4.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    relations = ItemRelations(
        torch.tensor([0, 0, 0, 3]),
        torch.tensor([[-1], [-1], [3], [-1]]),
        torch.tensor([[1, 0]]),
        torch.tensor([[4.0]]),
    )
    logits, maps = head(items, words, torch.tensor([0, 1, 1, 0]), relations)
    # The column is like the first word: 4 * 0.25, times two words.
    size = 0.5 * math.log(2)
    assert logits.tolist() == pytest.approx([2, 3 + 1 - 1 - size + 1, 4 - 1 - size + 1 + 0.1, 1])
    expected = [[0, 4], [2, 6 + 0.5 * 4], [0, 8 + 0.5 * 4 + 0.1 * 2], [0, 2]]
    for row, own in zip(maps.tolist(), expected, strict=True):
        assert row == pytest.approx(own)


def test_what_marks_around_an_item_read_counts_as_much_for_each_word() -> None:
    """K = (0, 3) on both marks, v = (1, -2), by hand."""
    head = LinkerHead(1, rank=1, item_size=2)
    with torch.no_grad():
        head.item_projection.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, -2.0]]))
        head.item_projection.bias.zero_()
        head.word_projection.weight.fill_(1.0)
        head.word_projection.bias.zero_()
    items, words = torch.tensor([[5.0, 1.0], [0.0, 2.0]]), torch.tensor([[2.0], [4.0]])
    logits, maps = head(items, words, torch.tensor([0, 1]))
    assert maps.tolist() == [[6 + 3, 12 + 3], [12 - 4, 24 - 4]]
    assert logits.tolist() == [9 + 3, 18 - 4]


def test_marks_start_as_what_the_last_of_them_is_like() -> None:
    examples = make_examples(6)
    doubled = [
        replace(example, items=torch.cat([torch.randn_like(example.items), example.items], -1))
        for example in examples
    ]
    once, repeated = LinkerHead(HIDDEN, rank=4), LinkerHead(HIDDEN, rank=4, item_size=2 * HIDDEN)
    for head, own in ((once, examples), (repeated, doubled)):
        head.initialize(
            torch.cat([example.items for example in own]), torch.cat([e.words for e in own])
        )
    for example, other in zip(examples, doubled, strict=True):
        expected = once(example.items, example.words, example.kinds)
        found = repeated(other.items, other.words, other.kinds)
        torch.testing.assert_close(found[1], expected[1])


def test_names_and_structure_are_learned_where_states_say_nothing() -> None:
    """States are noise; the word that is like an item, and the parts of its whole, tell."""
    examples = []
    for number, example in enumerate(make_examples(80)):
        num_items = len(example.items)
        wanted = int(example.labels.nonzero())
        relations = ItemRelations(
            torch.zeros(num_items, dtype=torch.long),
            torch.full((num_items, 1 + number % 2), -1),
            torch.tensor([[wanted, 1], [(wanted + 1) % num_items, 2]]),
            torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        )
        noise = torch.randn(num_items, HIDDEN)
        examples.append(replace(example, items=noise, relations=relations))
    head = train_linker_head(examples, CONFIG, num_kinds=4)
    assert head.likeness_weight.shape == (4, 2)
    with torch.no_grad():
        best = [head(e.items, e.words, e.kinds, e.relations)[0].argmax() for e in examples]
    assert sum(bool(e.labels[i]) for e, i in zip(examples, best, strict=True)) > 70


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


def test_relations_of_some_examples_only_are_refused() -> None:
    """In a batch they would be taken for those of the texts before."""
    examples = make_examples(3)
    related = replace(examples[2], relations=make_relations(len(examples[2].items), 3))
    with pytest.raises(InputError, match=r"2 of 3 `examples` have no relations, such as 'q0'"):
        train_linker_head([*examples[:2], related], CONFIG)
