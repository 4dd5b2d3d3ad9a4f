"""States are read once, and what was read outlives an interrupt."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from sense_trl.errors import InputError
from sense_trl.trainers.linking import StateCache, StateReader
from sense_trl.trainers.linking.reader import Prefix

PREFIX = ("singer(name, age)\nQuestion:", [(0, 6), (7, 11)])
TEXTS = [(f" How old is number {i}?\n", [(1, 4), (5, 8)]) for i in range(45)]


class CountingReader(StateReader):
    """Counts what is read; stops after some texts."""

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.num_prefixes = self.num_texts = 0
        self.limit = 10_000

    def read_prefix(self, text: str, spans: Sequence[tuple[int, int]]) -> Prefix:
        self.num_prefixes += 1
        return super().read_prefix(text, spans)

    def read_behind(
        self, prefix: Prefix, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[torch.Tensor]:
        if self.num_texts + len(texts) > self.limit:
            raise KeyboardInterrupt
        self.num_texts += len(texts)
        return super().read_behind(prefix, texts, spans)


def make_reader(**options: Any) -> CountingReader:
    return CountingReader(
        tiny_models.build_tiny_model("llama"), tiny_models.build_tiny_tokenizer(), **options
    )


def test_what_was_read_is_found_again_and_is_the_same(tmp_path: Path) -> None:
    reader = make_reader()
    finished: list[int] = []
    items, words = StateCache(reader, tmp_path).read(PREFIX, TEXTS, on_progress=finished.append)
    plain = reader.read_behind(reader.read_prefix(*PREFIX), *zip(*TEXTS, strict=True))
    assert items.dtype == torch.float16
    for own, expected in zip(words, plain, strict=True):
        torch.testing.assert_close(own.float(), expected, atol=1e-3, rtol=1e-3)
    assert sum(finished) == 45
    # In another process, with one more text and one twice.
    later = make_reader()
    cache = StateCache(later, tmp_path)
    more = [*TEXTS, TEXTS[3], (" New?\n", [(1, 4)])]
    assert cache.get_missing(PREFIX, more) == [more[-1]]
    again = cache.read(PREFIX, more)
    assert (later.num_prefixes, later.num_texts) == (1, 1)
    assert torch.equal(again[0], items)
    assert all(torch.equal(a, b) for a, b in zip(again[1], [*words, words[3]], strict=False))
    assert not list(tmp_path.glob("*.tmp"))


def test_an_interrupt_loses_nothing_that_was_read(tmp_path: Path) -> None:
    reader = make_reader()
    reader.limit = 44
    with pytest.raises(KeyboardInterrupt):
        StateCache(reader, tmp_path).read(PREFIX, TEXTS)
    assert reader.num_texts == 40
    later = make_reader()
    StateCache(later, tmp_path).read(PREFIX, TEXTS)
    assert later.num_texts == 5


def test_other_texts_places_layers_and_models_are_other_states(tmp_path: Path) -> None:
    StateCache(make_reader(layer=1), tmp_path).read(PREFIX, TEXTS[:1])
    same = StateCache(make_reader(layer=1), tmp_path)
    assert not same.get_missing(PREFIX, TEXTS[:1])
    text, spans = TEXTS[0]
    assert same.get_missing(PREFIX, [(text, spans[:1])])
    assert same.get_missing((PREFIX[0], PREFIX[1][:1]), TEXTS[:1])
    assert StateCache(make_reader(layer=2), tmp_path).get_missing(PREFIX, TEXTS[:1])
    trained = make_reader(layer=1)
    with torch.no_grad():
        next(trained.last_layer.parameters())[0, 0] += 0.5
    assert StateCache(trained, tmp_path).get_missing(PREFIX, TEXTS[:1])


def test_states_beyond_float16_stay_finite() -> None:
    reader = make_reader()
    with torch.no_grad():
        for weight in reader.last_layer.parameters():
            weight.mul_(1e4)
    items, _ = StateCache(reader).read(PREFIX, TEXTS[:1])
    assert items.isfinite().all()
    assert items.abs().max() == torch.finfo(torch.float16).max


def test_damage_and_a_full_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader()
    cache = StateCache(reader, tmp_path / "new" / "states")
    cache.check_space(1000)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"`state_cache` is '.*states', where 0.0 GB are free"):
        cache.check_space(1)
    StateCache(reader).check_space(10**12)
    (tmp_path / "a.states").write_bytes(b"no states")
    with pytest.raises(InputError, match=r"a.states' holds no states .* Delete it"):
        StateCache(reader, tmp_path)
