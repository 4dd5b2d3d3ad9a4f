"""What a policy writes while it is trained online: recorded as candidates, made into pairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from sense_trl.backends.backend import LocalBackend
from sense_trl.pairs.candidates import Candidate, CandidateFile, write_candidates
from sense_trl.pairs.config import PreferencePairConfig
from sense_trl.prompts import extract_sql
from sense_trl.rewards import get_sql_execution_reward, get_sql_partial_rewards
from sense_trl.steps import work
from sense_trl.steps.arguments import RewardArguments
from sense_trl.steps.verification import get_limits, open_verifiers
from sense_trl.task import TextToSQLTask

_FOLDER: Final = "rollouts"
ROLLOUTS: Final = "rollouts.jsonl"

Reward = Callable[..., list[float | None]]


@contextmanager
def open_rewards(databases: str, options: RewardArguments) -> Iterator[list[Reward]]:
    """The reward functions that the options name, over databases as `DataArguments` names them.

    Where execution leaves open whether an answer is right, the others say nothing either.
    """
    limits = get_limits(options)
    partial = [name for name in options.rewards if name != "execution"]
    rewards: dict[str, Any] = dict(
        zip(partial, get_sql_partial_rewards(databases, partial, limits=limits), strict=True)
    )
    if "execution" in options.rewards:
        rewards["execution"] = get_sql_execution_reward(
            databases,
            error=options.reward_error,
            limits=limits,
            num_workers=options.num_workers,
            cache_dir=options.cache_dir,
        )
    functions: dict[str, Reward] = dict(rewards)
    if "execution" in options.rewards:
        execution = _Remembered(rewards["execution"])
        functions = {name: _WhereKnown(reward, execution) for name, reward in rewards.items()}
        functions["execution"] = execution
    try:
        yield [functions[name] for name in options.rewards]
    finally:
        for reward in rewards.values():
            reward.close()


class _Remembered:
    """A reward function that scores the batch that it was last asked about once."""

    def __init__(self, reward: Any) -> None:
        self._reward = reward
        self._last: tuple[Any, list[float | None]] = (None, [])
        self.__name__: str = reward.__name__

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        # Held, so that no other batch can have its place in memory.
        if self._last[0] is not completions:
            self._last = (completions, self._reward(prompts, completions, **columns))
        return self._last[1]


class _WhereKnown:
    """A partial reward of the answers that execution decides.

    Without it an answer that a limit stopped would be compared by its partial rewards alone with
    those that have execution's on top, and count as wrong.
    """

    def __init__(self, reward: Any, execution: Reward) -> None:
        self._reward = reward
        self._execution = execution
        self.__name__: str = reward.__name__

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        decided = self._execution(prompts, completions, **columns)
        scores = self._reward(prompts, completions, **columns)
        return [
            None if known is None else score for known, score in zip(decided, scores, strict=True)
        ]


class RolloutRecorder:
    """A reward function that writes down what it is asked about.

    The completions of a step are in files of that step, one for each process, which a run that is
    resumed before it writes again.

    Args:
        reward: what scores them.
        folder: of the training.
        model: what the policy is called in provenance; the step is added.
        sampling: `temperature`, `top_p` and `seed` of the training.
        max_tokens: limit of a completion, if there is one.
        end_ids: tokens that end one.
        process: number of this process.
    """

    def __init__(
        self,
        reward: Reward,
        folder: Path,
        *,
        model: str,
        sampling: dict[str, Any],
        max_tokens: int | None,
        end_ids: Collection[int],
        process: int = 0,
    ) -> None:
        self._reward = reward
        self._folder = folder / _FOLDER
        self._model = model
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._end_ids = {*end_ids}
        self._process = process
        self._step: int | None = None
        # TRL names its metrics by this.
        self.__name__: str = getattr(reward, "__name__", "reward")

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        completion_ids: Sequence[Sequence[int]],
        question_id: Sequence[str],
        trainer_state: Any,
        **columns: Any,
    ) -> list[float | None]:
        """Score completions, and write them down."""
        step = trainer_state.global_step
        texts = [completion[-1]["content"] for completion in completions]
        rows = zip(question_id, texts, completion_ids, strict=True)
        groups: dict[str, list[Candidate]] = {}
        for question, text, ids in rows:
            group = groups.setdefault(question, [])
            candidate = Candidate(
                question_id=question,
                sample=len(group),
                sql=extract_sql(text),
                text=text,
                source="weak",
                model=f"{self._model}, step {step}",
                finished=self._is_finished(ids),
                num_tokens=len(ids),
                **self._sampling,
            )
            group.append(candidate)
        path = self._folder / f"{step:06}-{self._process}.jsonl"
        # A step may generate several times; one that is done again begins anew.
        if step == self._step:
            for candidate in CandidateFile(path):
                groups.setdefault(candidate.question_id, []).append(candidate)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_candidates(path, groups.values())
        self._step = step
        return self._reward(
            prompts,
            completions,
            completion_ids=completion_ids,
            question_id=question_id,
            trainer_state=trainer_state,
            **columns,
        )

    def _is_finished(self, ids: Sequence[int]) -> bool:
        is_short = self._max_tokens is not None and len(ids) < self._max_tokens
        return is_short or (len(ids) > 0 and ids[-1] in self._end_ids)


def collect_rollouts(folder: Path) -> CandidateFile:
    """One file of all completions of a training, those of a question in the order of steps."""
    path = folder / ROLLOUTS
    if not path.exists():
        groups: dict[str, list[Candidate]] = {}
        for part in sorted((folder / _FOLDER).glob("*.jsonl")):
            for candidate in CandidateFile(part):
                group = groups.setdefault(candidate.question_id, [])
                group.append(replace(candidate, sample=len(group)))
        write_candidates(path, groups.values())
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    return CandidateFile(path)


def pair_rollouts(
    task: TextToSQLTask,
    candidates: CandidateFile,
    folder: Path,
    options: RewardArguments,
    console: Console,
) -> None:
    """Make verified preference pairs of what was written, with its provenance, in a folder."""
    if (folder / "pairs.json").exists():
        return
    config = PreferencePairConfig(chosen_sources=("weak",))
    backend = LocalBackend(options.num_workers)
    with open_verifiers(task.catalog, options, task.schemas, backend) as (verifier, _):
        result = work.pair(task, candidates, verifier, config, folder, console)
    console.print(f"{len(result.dataset)} pairs of what was written: {folder}", highlight=False)
