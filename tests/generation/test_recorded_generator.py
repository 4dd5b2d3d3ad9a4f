"""Completions are written once, whatever happens in between."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.generation.recorded_generator import RecordedGenerator
from sense_trl.prompts import Messages

SAMPLING = SamplingConfig(num_generations=2, temperature=1.0)


class Counting:
    """Answers with a number that counts all answers, and may stop after some calls."""

    name = "counting"

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[list[str]] = []
        self.stop_after = stop_after

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append([prompt[-1]["content"] for prompt in prompts])
        return [
            [
                Completion(f"{prompt[-1]['content']} {i} {sampling.seed} é\n", 3, True)
                for i in range(sampling.num_generations)
            ]
            for prompt in prompts
        ]


def _prompts(*words: str) -> list[Messages]:
    return [[{"role": "user", "content": word}] for word in words]


def _recorded(path: Path, generator: Counting, **options: Any) -> RecordedGenerator:
    return RecordedGenerator(path, "m", lambda: generator, chunk_size=2, **options)


def test_nothing_is_asked_twice_and_order_is_kept(tmp_path: Path) -> None:
    model = Counting()
    recorded = _recorded(tmp_path / "deep" / "s.jsonl", model)
    first = recorded.generate(_prompts("a", "b", "a", "c"), SAMPLING)
    assert [group[1].text for group in first] == [
        f"{word} 1 0 é\n" for word in ("a", "b", "a", "c")
    ]
    assert model.asked == [["a", "b"], ["c"]]
    assert recorded.generate(_prompts("c", "a"), SAMPLING) == [first[3], first[0]]
    assert model.asked == [["a", "b"], ["c"]]
    # Another way of sampling is another question.
    other = SamplingConfig(num_generations=2, temperature=1.0, seed=1)
    assert recorded.generate(_prompts("a"), other)[0][0].text == "a 0 1 é\n"
    assert len(model.asked) == 3


def test_a_second_run_reads_the_file_and_loads_no_model(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    first = _recorded(path, Counting()).generate(_prompts("a", "b", "c"), SAMPLING)

    def load() -> Counting:
        raise AssertionError("loaded")

    again = RecordedGenerator(path, "m", load)
    assert again.generate(_prompts("a", "b", "c"), SAMPLING) == first
    assert again.name == "m"


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_an_interrupted_run_continues_in_the_same_chunks(tmp_path: Path, cut: int) -> None:
    words = ("a", "b", "c", "d", "e")
    _recorded(tmp_path / "whole", Counting()).generate(_prompts(*words), SAMPLING)
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        _recorded(path, Counting(stop_after=2)).generate(_prompts(*words), SAMPLING)
    content = path.read_bytes()
    assert content.count(b"\n") == 4
    # A crash in the middle of a line: its prompt is asked again, with the rest of its chunk.
    path.write_bytes(content[: len(content) - cut])
    model = Counting()
    _recorded(path, model).generate(_prompts(*words), SAMPLING)
    assert model.asked == ([["c", "d"], ["e"]] if cut else [["e"]])
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_progress_is_shown_for_what_is_asked(tmp_path: Path) -> None:
    shown: list[int] = []

    @contextmanager
    def open_bar(total: int) -> Any:
        shown.append(total)
        yield shown.append

    finished: list[int] = []
    recorded = _recorded(tmp_path / "s.jsonl", Counting(), open_bar=open_bar)
    recorded.generate(_prompts("a", "b", "c"), SAMPLING, on_progress=finished.append)
    assert shown == [3, 2, 1]
    assert finished == [6]
    recorded.generate(_prompts("a", "b", "c"), SAMPLING)
    assert shown == [3, 2, 1]


def test_a_file_that_was_changed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"key": "k", "completions": [{"text": "x"}]}\n')
    with pytest.raises(InputError, match=r"s\.jsonl, line 1 is no record of completions"):
        _recorded(path, Counting())
