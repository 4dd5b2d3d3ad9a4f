"""Sampling in several processes gives the file of one."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.questions import Question
from sense_trl.steps.processes import Processes, get_processes
from sense_trl.steps.sampling import sample_candidates

QUESTIONS = [Question(f"q{i}", "ab"[i % 2], f"Question {i}?", "SELECT 1") for i in range(11)]
TASK = SimpleNamespace(get_messages=lambda question: question.question)
SAMPLING = SimpleNamespace(temperature=1.0, top_p=1.0, seed=0)


class Echo:
    """Answers with the prompt and its chunk, and remembers how many it wrote."""

    name = "echo"

    def __init__(self) -> None:
        self.num_prompts = 0

    def generate(self, prompts: Sequence[str], sampling: SamplingConfig) -> list[list[Completion]]:
        self.num_prompts += len(prompts)
        return [[Completion(f"{prompt} of {prompts}", 1, True)] * 2 for prompt in prompts]


def _sample(path: Path, processes: Processes | None = None, **options: object) -> Echo:
    generator = Echo()
    sample_candidates(
        TASK, QUESTIONS, generator, SAMPLING, path,
        source="weak", chunk_size=2, processes=processes, **options,
    )  # fmt: skip
    return generator


def _sample_with(count: int, path: Path) -> list[Echo]:
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(
            pool.map(lambda i: _sample(path, Processes(i, count, barrier.wait)), range(count))
        )


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_share_the_work_and_leave_one_file(count: int, tmp_path: Path) -> None:
    _sample(tmp_path / "one.jsonl")
    generators = _sample_with(count, tmp_path / "several.jsonl")
    assert sum(generator.num_prompts for generator in generators) == len(QUESTIONS)
    assert min(generator.num_prompts for generator in generators) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "several.jsonl"]
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "several.jsonl").read_bytes()


def test_questions_on_one_database_are_sampled_together(tmp_path: Path) -> None:
    _sample(tmp_path / "one.jsonl")
    ids = list(dict.fromkeys(c.question_id for c in CandidateFile(tmp_path / "one.jsonl")))
    assert ids == [q.question_id for q in sorted(QUESTIONS, key=lambda q: q.db_id)]


def test_an_interrupted_run_continues_with_another_number_of_processes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    _sample(whole)

    def crash(done: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _sample(broken, Processes(0, 2), on_progress=crash)
    assert (tmp_path / "broken.part-0.jsonl").exists() and not broken.exists()
    assert _sample(broken).num_prompts == len(QUESTIONS) - 2
    assert broken.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part-*"))


def test_a_merge_that_was_interrupted_doubles_nothing(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "path.jsonl"
    _sample(whole)
    path.write_bytes(whole.read_bytes())
    path.with_name("path.part-1.jsonl").write_bytes(whole.read_bytes())
    assert _sample(path).num_prompts == 0
    assert path.read_bytes() == whole.read_bytes()


def test_one_process_is_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert get_processes().count == 1
    code = "import sys, sense_trl.steps.processes as p; p.get_processes(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Server:
    """Answers every sample by itself, is paid for each, and may fail after some."""

    name = "server"

    def __init__(self, fails_after: int | None = None) -> None:
        self.paid: list[tuple[str, int]] = []
        self.fails_after = fails_after
        self.num_asked: list[int] = []

    def generate(self, prompts: Sequence[str], sampling: SamplingConfig) -> list[list[Completion]]:
        raise AssertionError("answers would be lost")

    def resume(
        self,
        prompts: Sequence[str],
        sampling: SamplingConfig,
        answered: Sequence[Mapping[int, Completion]],
        on_answers: Callable[[int, Mapping[int, Completion]], None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        groups = [dict(known) for known in answered]
        self.num_asked.append(len(prompts))
        # As a server that has finished the last ones first.
        for sample in range(sampling.num_generations):
            for index in reversed(range(len(prompts))):
                if sample in groups[index]:
                    continue
                if self.fails_after == len(self.paid):
                    raise ConnectionResetError
                self.paid.append((prompts[index], sample))
                groups[index][sample] = Completion(f"{prompts[index]} {sample}", 1, True)
                on_answers(index, {sample: groups[index][sample]})
                if on_progress is not None:
                    on_progress(1)
        return [[group[i] for i in range(sampling.num_generations)] for group in groups]


def _sample_from(server: Server, path: Path, **options: object) -> None:
    sampling = SamplingConfig(num_generations=3, temperature=1.0)
    sample_candidates(
        TASK, QUESTIONS, server, sampling, path, source="weak", chunk_size=4, **options
    )


def test_no_answer_of_a_server_is_paid_for_twice(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    _sample_from(Server(), whole)
    paid: list[tuple[str, int]] = []
    for fails_after in (0, 1, 7, 2, 10, None):
        server = Server(fails_after)
        if fails_after is None:
            _sample_from(server, broken)
        else:
            with pytest.raises(ConnectionResetError):
                _sample_from(server, broken)
        paid += server.paid
    assert sorted(paid) == sorted((f"Question {i}?", j) for i in range(11) for j in range(3))
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "whole.jsonl"]


def test_answers_of_a_process_are_there_for_another_number_of_them(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    _sample_from(Server(), whole)
    first, second = Server(5), Server()
    with pytest.raises(ConnectionResetError):
        _sample_from(first, broken, processes=Processes(1, 2))
    assert (tmp_path / "broken.answers-1.jsonl").exists()
    _sample_from(second, broken)
    assert len(first.paid) + len(second.paid) == 33
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "whole.jsonl"]


def test_a_server_is_asked_everything_together_and_finished_questions_are_counted(
    tmp_path: Path,
) -> None:
    server, finished = Server(), list[int]()
    _sample_from(server, tmp_path / "candidates.jsonl", on_progress=finished.append)
    assert server.num_asked == [11]
    assert finished == [1] * 11 + [0]
