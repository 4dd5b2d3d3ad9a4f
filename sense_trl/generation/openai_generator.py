"""`OpenAIGenerator`: samples from any server with OpenAI's chat-completions interface."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from sense_trl.chat_template import fold_messages
from sense_trl.chat_tokens import looks_like_control
from sense_trl.errors import InputError, ModelError, check_at_least, check_positive
from sense_trl.generation.chat_endpoint import (
    ChatEndpoint,
    ChatResponse,
    Choice,
    RequestRefused,
)
from sense_trl.generation.fences import close_at_fence
from sense_trl.generation.generator import Completion, SamplingConfig, completion_seed
from sense_trl.prompts import Messages

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

# What servers call an answer that the model ended by itself.
_ENDED = frozenset({"stop", "eos_token"})
# Set by `SamplingConfig`, which the provenance columns repeat.
_SAMPLED_FIELDS = ("temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")
_FIXED_FIELDS = ("model", "messages", "n", "stream")


@dataclass(frozen=True, slots=True)
class EndpointUsage:
    """Counts of a generator's requests, tokens, failures and cost since it was made.

    Attributes:
        num_requests: requests sent, retries included.
        num_retries: requests sent again after a failure.
        num_prompt_tokens: tokens read, as the server counts them.
        num_completion_tokens: tokens written, as the server counts them.
        num_uncounted: answered requests without token counts.
        failures: unusable answers by reason: `"length"` (cut off), `"content_filter"`,
            `"refusal"`, `"empty"`, `"missing"` (no finish reason), or the server's own word.
        unanswered: beginnings of the questions to which no answer was usable.
        cost: of the counted tokens, in the currency of `price_per_million`; `None` without it. A
            discount for cached tokens is not taken off, and answers that were lost on the way are
            not in it.
    """

    num_requests: int
    num_retries: int
    num_prompt_tokens: int
    num_completion_tokens: int
    num_uncounted: int
    failures: dict[str, int]
    unanswered: tuple[str, ...]
    cost: float | None


@dataclass(order=True, frozen=True, slots=True)
class _Job:
    """Samples of one prompt to ask for together; those of earlier prompts go first."""

    prompt: int
    samples: tuple[int, ...]


@dataclass(slots=True)
class _Run:
    """One call of `generate`: what was asked, and the answers so far."""

    prompts: Sequence[Messages]
    sampling: SamplingConfig
    on_progress: Callable[[int], None] | None
    on_result: Callable[[int, list[Completion]], None] | None
    answers: list[dict[int, Completion]]
    on_answers: Callable[[int, Mapping[int, Completion]], None] | None = None
    error: InputError | ModelError | None = None
    failures: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    num_usable: Counter[int] = field(default_factory=Counter)

    def completions(self, prompt: int) -> list[Completion]:
        return [completion for _, completion in sorted(self.answers[prompt].items())]


class OpenAIGenerator:
    """Samples SQL from a server: vLLM, llama.cpp, Ollama, TGI, or a paid service.

    Up to `concurrency` requests are under way at a time. Several samples of a prompt are one
    request with `n`, so that the prompt is paid for once; a server that ignores or refuses `n` gets
    one request per sample instead. Every request carries a seed made from `SamplingConfig.seed`,
    the prompt and the number of its (first) sample; whether the same seed gives the same text is up
    to the server.

    What only the server knows is not controlled: vLLM's applies the model's own generation settings
    (`top_k`, `repetition_penalty`) to requests that do not set them, unless it is started with
    `--generation-config vllm`. Set them with `extra_body` where it matters.

    Args:
        model: the name under which the server knows the model.
        base_url: the server's address before `/chat/completions`, e.g.
            `"http://localhost:8000/v1"`. Proxies of the environment are used, except for addresses
            on this machine.
        api_key: the server's key. It is written nowhere; a generator cannot be pickled.
        api_key_env: name of the environment variable that holds the key, e.g.
            `"OPENAI_API_KEY"`. None is read unless named: a key goes only where it is meant to.
        name: label for provenance; `model` if not given.
        concurrency: requests under way at a time.
        timeout_s: limit for one request, from sending it to the last byte of the answer. It has to
            cover the wait behind the other requests: a server that is slower begins anew with each
            try.
        max_retries: further tries of a request after status 408, 409, 425, 429, 5xx, a lost
            connection, a time-out or an unreadable answer.
        max_wait_s: longest wait between two tries. A server that asks for more (Retry-After) ends
            the run.
        use_n: ask for several samples at once. Set it to false for a server that fails at `n` or
            repeats one answer.
        max_tokens_field: how the server calls the limit of an answer; newer models of OpenAI know
            only `"max_completion_tokens"`.
        extra_body: further fields of a request, e.g. `{"top_k": 20}`; a field that is `None` is
            left out, for servers that refuse it, e.g. `{"seed": None}`.
        price_per_million: price of a million prompt tokens and of a million completion tokens, for
            `usage.cost`.
        fold_system_message: put the system's text in front of the user's, for models whose chat
            template has no system role.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        api_key_env: str | None = None,
        name: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        max_wait_s: float = 60.0,
        use_n: bool = True,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        price_per_million: tuple[float, float] | None = None,
        fold_system_message: bool = False,
    ) -> None:
        if not model:
            raise InputError("`model` is empty; expected the name the server gives the model.")
        check_at_least(1, concurrency=concurrency)
        check_positive(timeout_s=timeout_s)
        check_at_least(0, max_retries=max_retries, max_wait_s=max_wait_s)
        if max_tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise InputError(
                f"`max_tokens_field` is {max_tokens_field!r}; expected 'max_tokens' or "
                "'max_completion_tokens'."
            )
        if price_per_million is not None and not all(
            math.isfinite(price) and price >= 0 for price in price_per_million
        ):
            raise InputError(
                f"`price_per_million` is {price_per_million}; expected two prices, 0 or more: of a "
                "million prompt tokens and of a million completion tokens."
            )
        self.model = model
        self._name = name or model
        self._concurrency = concurrency
        self._uses_n = use_n
        self._folds = fold_system_message
        self._max_tokens_field = max_tokens_field
        self._extra_body = _checked_fields(extra_body or {})
        self._price_per_million = price_per_million
        self._endpoint = ChatEndpoint(
            base_url,
            api_key=api_key,
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_wait_s=max_wait_s,
        )
        self._warned_of: set[str] = set()
        self._tokens: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._unanswered: list[str] = []

    def __repr__(self) -> str:
        return f"OpenAIGenerator({self.model!r}, {self._endpoint.url!r})"

    @property
    def name(self) -> str:
        """Label used in provenance columns."""
        return self._name

    @property
    def usage(self) -> EndpointUsage:
        """Requests, tokens, cost and unusable answers since the generator was made."""
        num_prompt, num_completion = self._tokens["prompt"], self._tokens["completion"]
        cost = None
        if self._price_per_million is not None:
            prompt_price, completion_price = self._price_per_million
            cost = (num_prompt * prompt_price + num_completion * completion_price) / 1e6
        return EndpointUsage(
            num_requests=self._endpoint.num_requests,
            num_retries=self._endpoint.num_retries,
            num_prompt_tokens=num_prompt,
            num_completion_tokens=num_completion,
            num_uncounted=self._tokens["uncounted"],
            failures=dict(sorted(self._failures.items())),
            unanswered=tuple(self._unanswered),
            cost=cost,
        )

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_result: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Write completions; see `SQLGenerator.generate`.

        An answer that was cut off, filtered or refused is a completion that is not `finished`, with
        the text that came; it is counted in `usage`, and a warning is logged. `num_tokens` is the
        server's count (0 if it has none); of samples that share a request only the sum is known,
        and is divided in proportion to their length.

        Ctrl-C and an exception of a callback end all requests under way; at an error of the server
        no more are sent, and those under way are waited for, because they are paid for. It works
        inside a running event loop (a notebook), too; callbacks then run in another thread.

        Args:
            prompts: conversations as `get_prompt` builds them.
            sampling: how to sample.
            on_progress: called with the number of completions finished since the last call.
            on_result: called with the index of a prompt and all its completions as soon as they are
                there, in the order in which prompts are finished.

        Raises:
            InputError: the address, the key, the model or a prompt is not accepted.
            ModelError: the server does not answer, in spite of retries.
        """
        return self._run(_Run(prompts, sampling, on_progress, on_result, [{} for _ in prompts]))

    def resume(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        answered: Sequence[Mapping[int, Completion]],
        on_answers: Callable[[int, Mapping[int, Completion]], None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Write the completions that are missing; see `ResumableGenerator` and `generate`."""
        answers = [dict(known) for known in answered]
        return self._run(_Run(prompts, sampling, on_progress, None, answers, on_answers))

    def _run(self, run: _Run) -> list[list[Completion]]:
        try:
            _run_blocking(self._answer_all(run))
        except BaseExceptionGroup as group:
            # Workers fail one by one; the first error has ended the others.
            raise group.exceptions[0] from None
        finally:
            self._report(run)
        return [run.completions(index) for index in range(len(run.prompts))]

    async def _answer_all(self, run: _Run) -> None:
        queue: asyncio.PriorityQueue[_Job] = asyncio.PriorityQueue()
        samples = range(run.sampling.num_generations)
        self._warn_of_control_strings(run.prompts)
        for index, answers in enumerate(run.answers):
            if missing := tuple(sample for sample in samples if sample not in answers):
                queue.put_nowait(_Job(index, missing))
        async with self._endpoint.connect() as client, asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._work(client, queue, run))
                for _ in range(min(self._concurrency, len(run.prompts) * len(samples)))
            ]
            await queue.join()
            for worker in workers:
                worker.cancel()
        if run.error is not None:
            raise run.error

    async def _work(
        self, client: httpx2.AsyncClient, queue: asyncio.PriorityQueue[_Job], run: _Run
    ) -> None:
        while True:
            job = await queue.get()
            if run.error is not None:
                pass
            elif len(job.samples) > 1 and not self._uses_n:
                for sample in job.samples:
                    queue.put_nowait(_Job(job.prompt, (sample,)))
            else:
                try:
                    response = await self._ask(client, run, job)
                except (InputError, ModelError) as error:
                    # The first one ends the run; what is under way is paid for.
                    run.error = run.error or error
                else:
                    rest = job.samples[len(response.choices) :]
                    if rest:
                        self._uses_n = False
                        queue.put_nowait(_Job(job.prompt, rest))
                    self._record(run, job, response)
            queue.task_done()

    async def _ask(self, client: httpx2.AsyncClient, run: _Run, job: _Job) -> ChatResponse:
        """Answers for at least the first sample of `job`."""
        messages = run.prompts[job.prompt]
        try:
            body = self._body(messages, run.sampling, job)
            return await self._endpoint.ask(client, body, may_retry=lambda: run.error is None)
        except RequestRefused as refusal:
            if len(job.samples) > 1:
                # It may be `n` that is refused.
                return await self._ask(client, run, _Job(job.prompt, job.samples[:1]))
            raise InputError(
                f"The server refuses prompt {job.prompt} ({_beginning(messages)!r}) with "
                f"{refusal}. If the prompt is too long, use a shorter schema style: prompts are "
                "never cut. A field that the server does not know is left out by `extra_body` "
                'with `None`, e.g. {"seed": None}; see `max_tokens_field`, too.'
            ) from None

    def _body(self, messages: Messages, sampling: SamplingConfig, job: _Job) -> dict[str, Any]:
        seed = completion_seed(sampling.seed, json.dumps(messages), job.samples[0])
        body = {
            "model": self.model,
            "messages": fold_messages(messages) if self._folds else messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._max_tokens_field: sampling.max_new_tokens,
            # Some servers hold a seed in 32 bits with a sign.
            "seed": seed >> 32,
            **self._extra_body,
        }
        if len(job.samples) > 1:
            body["n"] = len(job.samples)
        return {key: value for key, value in body.items() if value is not None}

    def _record(self, run: _Run, job: _Job, response: ChatResponse) -> None:
        choices = response.choices[: len(job.samples)]
        if response.num_completion_tokens is None:
            self._tokens["uncounted"] += 1
        num_tokens = response.num_completion_tokens or 0
        self._tokens["prompt"] += response.num_prompt_tokens or 0
        self._tokens["completion"] += num_tokens
        answers, new = run.answers[job.prompt], dict[int, Completion]()
        for sample, choice, num in zip(
            job.samples, choices, _split(num_tokens, choices), strict=False
        ):
            completion = Completion(choice.text.strip(), num, choice.finish_reason in _ENDED)
            # What was filtered or refused stays so.
            if run.sampling.stop_at_fence and choice.finish_reason in {*_ENDED, "length"}:
                completion = close_at_fence(completion)
            new[sample] = completion
            is_usable = completion.finished and completion.text
            failure = None if is_usable else _failure(choice)
            if failure is None:
                run.num_usable[job.prompt] += 1
            else:
                run.failures[failure] += 1
        answers |= new
        if run.on_answers is not None:
            run.on_answers(job.prompt, new)
        if run.on_progress is not None:
            run.on_progress(len(choices))
        if len(answers) == run.sampling.num_generations:
            if not run.num_usable[job.prompt]:
                run.unanswered.append(_beginning(run.prompts[job.prompt]))
            if run.on_result is not None:
                run.on_result(job.prompt, run.completions(job.prompt))

    def _warn_of_control_strings(self, prompts: Sequence[Messages]) -> None:
        found = {text for messages in prompts if (text := looks_like_control(messages))}
        new = sorted(found - self._warned_of)
        self._warned_of |= found
        if new:
            logger.warning(
                "Prompts for %s hold %s. Many servers take that for a control token, also where it "
                "stands in a name, a value or a question, and the model then reads another prompt. "
                "Only the server can tell it from its own; leave such data out, or sample with the "
                "model in this process.",
                self._endpoint.url,
                ", ".join(map(repr, new)),
            )

    def _report(self, run: _Run) -> None:
        self._failures += run.failures
        self._unanswered += run.unanswered
        if run.failures:
            logger.warning(
                "%s: %d unusable answers (%s); no usable answer to %d of %d questions%s",
                self._name,
                run.failures.total(),
                ", ".join(f"{reason} {num}" for reason, num in sorted(run.failures.items())),
                len(run.unanswered),
                len(run.prompts),
                f", e.g. {run.unanswered[0]!r}" if run.unanswered else "",
            )


def _checked_fields(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in extra_body.items():
        if key in _FIXED_FIELDS or (key in _SAMPLED_FIELDS and value is not None):
            raise InputError(
                f"`extra_body` sets {key!r}, which the generator's arguments and the sampling "
                "settings decide. Set it there; of the sampling settings, `None` leaves one out."
            )
    try:
        json.dumps(dict(extra_body), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"`extra_body` cannot be written as JSON ({error}).") from error
    return dict(extra_body)


def _failure(choice: Choice) -> str | None:
    """The reason why nothing can be made of an answer; `None` if it is usable."""
    if choice.finish_reason not in _ENDED:
        return choice.finish_reason
    return None if choice.text.strip() else "empty"


def _split(total: int, choices: Sequence[Choice]) -> list[int]:
    """Divide `total` tokens among answers by their length; the parts sum to `total`."""
    lengths = [len(choice.text) or 1 for choice in choices]
    ends = [round(total * end / sum(lengths)) for end in accumulate(lengths)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _beginning(messages: Messages) -> str:
    question = " ".join(messages[-1]["content"].split())
    return question if len(question) <= 80 else question[:77] + "..."


def _run_blocking(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, whether or not this thread has a running event loop."""
    if not _has_running_loop():
        asyncio.run(main)
        return
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def tracked() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        await main

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, tracked())
        try:
            future.result()
        except KeyboardInterrupt:
            if started and not future.done():
                loop, task = started[0]
                loop.call_soon_threadsafe(task.cancel)
            raise


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
