"""Sampling from a server: what is asked, what is kept, what is tried again, what is never shown."""

import asyncio
import copy
import functools
import gzip
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from chat_server import (
    Reply,
    Seen,
    answer_well,
    completion,
    error,
    serve,
    serve_in_turn,
    write_answer,
)

from sense_trl.errors import InputError, ModelError
from sense_trl.generation import chat_endpoint
from sense_trl.generation.chat_endpoint import Choice, _retry_after_s
from sense_trl.generation.generator import Completion, SamplingConfig, completion_seed
from sense_trl.generation.openai_generator import OpenAIGenerator, _split
from sense_trl.pairs.candidates import Candidate, CandidateFile
from sense_trl.prompts import extract_sql, get_prompt

QUESTIONS = [f"How many singers are older than {age}?" for age in range(20, 32)]
PROMPTS = [get_prompt(question, "singer(singer_id, name, age, country)") for question in QUESTIONS]
GREEDY = SamplingConfig(max_new_tokens=64)
SAMPLED = SamplingConfig(num_generations=4, temperature=0.8, top_p=0.9, max_new_tokens=64, seed=7)
KEY = "sk-test-0123456789abcdef"
GOOD = Reply(completion(("SELECT 1", "stop"), num_tokens=3))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "_FIRST_WAIT_S", 0.01)
    # A proxy that leads nowhere: requests to this machine must not take it.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    # The server's threads end when their connection does.
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def _one(*replies: Reply, prompt: int = 0, **options: object) -> tuple[Completion, OpenAIGenerator]:
    with serve_in_turn(*replies) as server:
        generator = OpenAIGenerator("m", server.url, **options)
        return generator.generate([PROMPTS[prompt]], GREEDY)[0][0], generator


def _seed(prompt: int, sample: int, seed: int = 7) -> int:
    return completion_seed(seed, json.dumps(PROMPTS[prompt]), sample) >> 32


# What is asked


def test_a_request_says_what_the_sampling_settings_say() -> None:
    with serve(answer_well) as server:
        generator = OpenAIGenerator("qwen", server.url + "/", api_key=KEY, extra_body={"top_k": 5})
        generator.generate(PROMPTS[:1], SAMPLED)
    (request,) = server.seen
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "qwen",
        "messages": PROMPTS[0],
        "temperature": 0.8,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": _seed(0, 0),
        "top_k": 5,
        "n": 4,
    }
    assert request.body["seed"] < 2**31


def test_fields_can_be_left_out_or_called_otherwise() -> None:
    with serve_in_turn(GOOD) as server:
        OpenAIGenerator(
            "o", server.url, extra_body={"seed": None}, max_tokens_field="max_completion_tokens"
        ).generate(PROMPTS[:1], GREEDY)
    assert set(server.seen[0].body) == {
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_completion_tokens",
    }
    assert "Authorization" not in server.seen[0].headers


def _refuses_n(request: Seen) -> Reply:
    if "n" in request.body:
        return Reply(error("'n' must be 1"), status=400)
    return answer_well(request)


@pytest.mark.parametrize("server_kind", ["ignores", "refuses", "unused"])
def test_a_server_without_n_is_asked_once_per_sample(server_kind: str) -> None:
    reply = _refuses_n if server_kind == "refuses" else lambda r: answer_well(r, knows_n=False)
    with serve(reply) as server:
        generator = OpenAIGenerator(
            "m", server.url, concurrency=3, use_n=server_kind != "unused", max_retries=0
        )
        results = generator.generate(PROMPTS, SAMPLED)
    expected = [
        [
            write_answer(prompt, _seed(index, sample), 0.8, 64)[0].strip()
            for sample in range(SAMPLED.num_generations)
        ]
        for index, prompt in enumerate(PROMPTS)
    ]
    assert [[c.text for c in group] for group in results] == expected
    answered = Counter(
        (json.dumps(r.body["messages"]), r.body["seed"])
        for r in server.seen
        if not (server_kind == "refuses" and "n" in r.body)
    )
    assert len(answered) == len(PROMPTS) * 4
    assert set(answered.values()) == {1}
    # Only what was under way before the first answer has tried `n`.
    tried = sum("n" in request.body for request in server.seen)
    assert tried == 0 if server_kind == "unused" else 1 <= tried <= 3


def test_a_server_that_caps_n_gives_the_rest_one_by_one() -> None:
    def two_at_most(request: Seen) -> Reply:
        request.body["n"] = min(2, request.body.get("n", 1))
        return answer_well(request)

    with serve(two_at_most) as server:
        (group,) = OpenAIGenerator("m", server.url).generate(PROMPTS[:1], SAMPLED)
    assert len(group) == 4
    first, *others = (r.body["seed"] for r in server.seen)
    # The others are asked at the same time.
    assert first == _seed(0, 0) and sorted(others) == sorted([_seed(0, 2), _seed(0, 3)])


def test_results_do_not_depend_on_concurrency_company_or_the_order_of_answers() -> None:
    def late(request: Seen) -> Reply:
        reply = answer_well(request)
        reply.delay_s = int(request.body["seed"]) % 5 / 200
        return reply

    with serve(late) as server:
        first = OpenAIGenerator("m", server.url, concurrency=1).generate(PROMPTS, SAMPLED)
        second = OpenAIGenerator("m", server.url, concurrency=16).generate(PROMPTS, SAMPLED)
        alone = OpenAIGenerator("m", server.url).generate(PROMPTS[5:6], SAMPLED)
        other = OpenAIGenerator("m", server.url).generate(
            PROMPTS, SamplingConfig(num_generations=4, temperature=0.8, max_new_tokens=64, seed=8)
        )
    assert first == second
    assert alone == first[5:6]
    assert other != first
    seeds = Counter(request.body["seed"] for request in server.seen[: 2 * len(PROMPTS)])
    assert set(seeds.values()) == {2}


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_under_way_than_allowed(concurrency: int) -> None:
    def slow(request: Seen) -> Reply:
        return Reply(GOOD.body, delay_s=0.02)

    with serve(slow) as server:
        OpenAIGenerator("m", server.url, concurrency=concurrency).generate(PROMPTS, GREEDY)
    assert server.most_at_once == concurrency


# What is kept


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("```sql\nSELECT 1;\n```", "SELECT 1"),
        ("  SELECT 1\n", "SELECT 1"),
        ("The query:\n\n```\nSELECT 1\n```\nIt gives one row.", "SELECT 1"),
        ("I cannot answer that.", "I cannot answer that."),
    ],
)
def test_an_answer_is_kept_as_the_model_wrote_it(text: str, sql: str) -> None:
    found, generator = _one(Reply(completion((text, "stop"), num_tokens=9)))
    assert found == Completion(text.strip(), 9, True)
    assert extract_sql(found.text) == sql
    assert generator.usage.failures == {}


@pytest.mark.parametrize(
    ("choice", "expected", "reason"),
    [
        ({"message": {"content": "SELECT"}, "finish_reason": "length"}, "SELECT", "length"),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "", "content_filter"),
        (
            {"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"},
            "No.",
            "refusal",
        ),
        ({"message": {"content": "SELECT 1"}}, "SELECT 1", "missing"),
        (
            {"message": {"content": None, "tool_calls": []}, "finish_reason": "tool_calls"},
            "",
            "tool_calls",
        ),
    ],
)
def test_an_unusable_answer_is_unfinished_and_counted(
    choice: dict[str, object], expected: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    found, generator = _one(Reply({"choices": [choice]}))
    assert found == Completion(expected, 0, False)
    assert generator.usage.failures == {reason: 1}
    assert generator.usage.unanswered == (QUESTIONS[0],)
    assert f"1 unusable answers ({reason} 1); no usable answer to 1 of 1" in caplog.text
    assert generator.usage.num_requests == 1


def test_an_empty_answer_is_finished_but_counted() -> None:
    found, generator = _one(Reply(completion((" \n", "stop"), num_tokens=1)))
    assert found == Completion("", 1, True)
    assert generator.usage.failures == {"empty": 1}


@pytest.mark.parametrize("num_generations", [1, 3])
def test_a_prompt_that_a_filter_rejects_is_counted_and_the_others_go_on(
    num_generations: int,
) -> None:
    def filtering(request: Seen) -> Reply:
        if request.body["messages"] == PROMPTS[1]:
            return Reply(error("filtered", "content_filter"), status=400)
        return answer_well(request)

    sampling = SamplingConfig(num_generations=num_generations, temperature=1.0, max_new_tokens=64)
    with serve(filtering) as server:
        generator = OpenAIGenerator("m", server.url)
        results = generator.generate(PROMPTS[:3], sampling)
    assert results[1] == [Completion("", 0, False)] * num_generations
    assert all(completion.text for group in (results[0], results[2]) for completion in group)
    assert generator.usage.failures == {"content_filter": num_generations}
    assert generator.usage.unanswered == (QUESTIONS[1],)
    assert len(server.seen) == 3


def test_a_question_with_one_usable_answer_is_answered() -> None:
    reply = Reply(completion(("SELECT", "length"), ("SELECT 1", "stop"), num_tokens=14))
    with serve_in_turn(reply) as server:
        generator = OpenAIGenerator("m", server.url)
        (group,) = generator.generate(
            PROMPTS[:1], SamplingConfig(num_generations=2, temperature=1.0)
        )
    # 14 tokens for texts of 6 and 8 characters.
    assert group == [Completion("SELECT", 6, False), Completion("SELECT 1", 8, True)]
    assert generator.usage.failures == {"length": 1}
    assert generator.usage.unanswered == ()


def test_tokens_of_a_shared_request_are_divided_by_length() -> None:
    assert _split(10, [Choice("abcd", "stop")]) == [10]
    assert _split(10, [Choice("ab", "stop"), Choice("abc", "stop"), Choice("", "stop")]) == [
        3,
        5,
        2,
    ]
    assert _split(0, [Choice("ab", "stop"), Choice("abc", "stop")]) == [0, 0]
    texts = [Choice("x" * length, "stop") for length in (1, 7, 7, 3, 100, 2)]
    assert all(sum(_split(total, texts)) == total for total in range(200))
    assert min(_split(3, texts)) >= 0


def test_choices_are_ordered_by_their_index_and_surplus_ones_dropped() -> None:
    body = completion(("a", "stop"), ("b", "stop"), ("c", "stop"))
    body["choices"].reverse()
    with serve_in_turn(Reply(body)) as server:
        (group,) = OpenAIGenerator("m", server.url).generate(
            PROMPTS[:1], SamplingConfig(num_generations=2, temperature=1.0)
        )
    assert [c.text for c in group] == ["a", "b"]


def test_text_in_parts_and_half_a_surrogate_pair_can_be_written_to_a_file(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "SELECT '\ud83d"},
        {"type": "other"},
        {"type": "text", "text": "é'"},
    ]
    choice = {"message": {"content": parts}, "finish_reason": "stop"}
    found, _ = _one(Reply({"choices": [choice]}))
    assert found.text == "SELECT '?é'"
    candidate = Candidate("q", 0, found.text, found.text, "weak", "m")
    CandidateFile(tmp_path / "c.jsonl").append("q", [candidate])
    assert list(CandidateFile(tmp_path / "c.jsonl")) == [candidate]


def test_tokens_and_cost_are_summed_over_calls() -> None:
    uncounted = Reply(completion(("SELECT 1", "stop")))
    with serve_in_turn(GOOD, uncounted, GOOD) as server:
        generator = OpenAIGenerator("m", server.url, price_per_million=(2.0, 10.0))
        results = generator.generate(PROMPTS[:1], GREEDY)
        results += generator.generate(PROMPTS[:1], GREEDY)
        results += generator.generate(PROMPTS[:1], GREEDY)
    assert [group[0].num_tokens for group in results] == [3, 0, 3]
    usage = generator.usage
    assert (usage.num_prompt_tokens, usage.num_completion_tokens) == (200, 6)
    assert (usage.num_requests, usage.num_retries, usage.num_uncounted) == (3, 0, 1)
    # 200 · 2 / 10⁶ + 6 · 10 / 10⁶
    assert usage.cost == pytest.approx(0.00046)
    assert OpenAIGenerator("m", "http://localhost/v1").usage.cost is None


# What is tried again


@pytest.mark.parametrize(
    "failure",
    [
        Reply(error("slow down"), status=429),
        Reply(b"<html>Bad gateway</html>", status=502),
        Reply({"error": "loading model"}, status=503),
        Reply(b'{"choices": [{"message": {"con', status=200),
        Reply({"choices": []}),
        Reply({"error": {"message": "upstream failed", "code": 502}}),
        Reply([1, 2]),
        Reply({"choices": [{"message": None}]}),
        Reply(b""),
        Reply(resets=True),
        Reply(b"\x1f\x8b broken", headers={"Content-Encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status} {str(reply.body)[:20]}",
)
def test_a_passing_failure_is_tried_again(failure: Reply) -> None:
    found, generator = _one(failure, failure, GOOD)
    assert found == Completion("SELECT 1", 3, True)
    assert (generator.usage.num_requests, generator.usage.num_retries) == (3, 2)


# What a server may not do


@functools.cache
def _bomb() -> bytes:
    """192 MiB of blanks in 192 KiB."""
    return gzip.compress(b" " * (192 * 2**20))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda: Reply(itertools.repeat(b"x" * 2**16)), "more than 16 MiB"),
        (lambda: Reply(itertools.repeat(b"x" * 2**16), status=500), "more than 16 MiB"),
        (lambda: Reply(_bomb(), headers={"Content-Encoding": "gzip"}), "more than 16 MiB"),
        (
            lambda: Reply(itertools.repeat(_bomb()), headers={"Content-Encoding": "gzip"}),
            "more than 16 MiB",
        ),
        (lambda: Reply(b"x", headers={"Content-Encoding": "br"}), "content encoding 'br'"),
        (lambda: Reply(b"x", headers={"Content-Encoding": "gzip, gzip"}), "'gzip, gzip'"),
    ],
    ids=["endless", "endless error", "bomb", "endless bomb", "brotli", "twice"],
)
def test_what_cannot_be_an_answer_ends_the_run(reply: Callable[[], Reply], message: str) -> None:
    _bomb()
    tracemalloc.start()
    try:
        with serve(lambda request: reply()) as server:
            with pytest.raises(ModelError, match=message):
                OpenAIGenerator("m", server.url).generate(PROMPTS[:1], GREEDY)
            assert len(server.seen) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Of an endless answer the socket's buffers hold some megabytes more.
    assert server.num_sent < 64 * 2**20
    assert peak < 60 * 2**20


def _deep(levels: int) -> bytes:
    return b'{"choices": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(_deep(100_000)),
        Reply(_deep(100_000), status=500),
        Reply(b'{"choices": [{"index": ' + b"9" * 5000 + b"}]}"),
        Reply(b'{"choices": [null, 1, "x", [], {}]}'),
        Reply(b'{"choices": [' + b"0," * 100_000 + b"0]}"),
        Reply("{}", headers={"X-Flood": "x" * 60_000}),
        Reply({"choices": {"0": 1}}),
        Reply(gzip.compress(b"{}", mtime=0)[:-9], headers={"Content-Encoding": "gzip"}),
        Reply('{"choices": "é"}'.encode("latin-1")),
    ],
    ids=lambda reply: str(reply.body)[:20],
)
def test_a_hostile_answer_is_tried_again_and_then_named(reply: Reply) -> None:
    found, generator = _one(reply, GOOD)
    assert found == Completion("SELECT 1", 3, True)
    assert generator.usage.num_retries == 1


def test_a_flood_of_headers_is_cut() -> None:
    flood = {f"X-{i}": "x" * 1000 for i in range(300)}
    found, generator = _one(Reply(GOOD.body, headers=flood), GOOD)
    assert found.text == "SELECT 1"
    assert generator.usage.num_retries == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "latin-1", "no-such"])
@pytest.mark.parametrize("packs", [False, True])
def test_json_is_read_in_the_encoding_that_it_has(encoding: str, charset: str, packs: bool) -> None:
    body = json.dumps(completion(("SELECT 'é'", "stop")), ensure_ascii=False).encode(encoding)
    headers = {"Content-Type": f"application/json; charset={charset}"}
    if packs:
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    found, generator = _one(Reply(body, headers=headers))
    assert found.text == "SELECT 'é'"
    assert generator.usage.num_retries == 0


@pytest.mark.parametrize("count", ["NaN", "Infinity", "1e400", "true", "-1", "9" * 4000, '"7"'])
def test_counts_that_are_none_do_not_count(count: str) -> None:
    body = json.dumps({**completion(("SELECT 1", "stop")), "usage": "U"})
    usage = f'{{"prompt_tokens": {count}, "completion_tokens": {count}}}'
    found, generator = _one(
        Reply(body.replace('"U"', usage).encode()), price_per_million=(1.0, 1.0)
    )
    assert found == Completion("SELECT 1", 0, True)
    assert generator.usage.num_uncounted == 1
    assert generator.usage.cost == 0


def test_readable_answers_are_kept_beside_broken_ones() -> None:
    body = {"choices": [None, {"message": {"content": "SELECT 2"}, "finish_reason": "stop"}]}
    with serve_in_turn(Reply(body)) as server:
        generator = OpenAIGenerator("m", server.url)
        sampling = SamplingConfig(num_generations=2, temperature=1.0)
        (group,) = generator.generate(PROMPTS[:1], sampling)
        assert len(server.seen) == 1
    assert group == [Completion("", 0, False), Completion("SELECT 2", 0, True)]
    assert generator.usage.failures == {"malformed": 1}


@pytest.mark.parametrize(
    "index", [[0, 0], [1, 1], ["b", "a"], [None, 0], [float("nan"), 0], [[], {}]]
)
def test_indices_that_do_not_order_leave_the_order(index: list[object]) -> None:
    body = completion(("a", "stop"), ("b", "stop"))
    for choice, value in zip(body["choices"], index, strict=True):
        choice["index"] = value
    with serve_in_turn(Reply(body)) as server:
        (group,) = OpenAIGenerator("m", server.url).generate(
            PROMPTS[:1], SamplingConfig(num_generations=2, temperature=1.0)
        )
    assert [c.text for c in group] == ["a", "b"]


def test_a_finish_reason_of_any_length_is_shown_short() -> None:
    reason = f"{KEY}\n" + "x" * 100_000
    found, generator = _one(Reply(completion(("SELECT 1", reason))), api_key=KEY)
    (shown,) = generator.usage.failures
    assert len(shown) == 300
    assert KEY not in shown
    assert not found.finished


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_takes_the_key_elsewhere(status: int) -> None:
    with (
        serve_in_turn(GOOD) as other,
        serve(lambda request: Reply(b"", status=status, headers={"Location": other.url})) as server,
    ):
        with pytest.raises(InputError, match=f"`base_url`.*status {status}"):
            OpenAIGenerator("m", server.url, api_key=KEY).generate(PROMPTS[:1], GREEDY)
        assert not other.seen


def test_at_an_error_what_is_under_way_is_waited_for_and_kept() -> None:
    refused = threading.Event()

    def reply(request: Seen) -> Reply:
        if request.body["messages"] == PROMPTS[2]:
            refused.set()
            return Reply(error("You exceeded", "insufficient_quota"), status=429)
        assert refused.wait(10)
        answer = answer_well(request)
        answer.delay_s = 0.2
        return answer

    kept: dict[int, dict[int, Completion]] = {}
    with serve(reply) as server:
        generator = OpenAIGenerator("m", server.url, concurrency=3)
        with pytest.raises(ModelError, match="quota"):
            generator.resume(PROMPTS, SAMPLED, [{} for _ in PROMPTS], kept.__setitem__)
        assert len(server.seen) == 3
    assert {index: len(answers) for index, answers in kept.items()} == {0: 4, 1: 4}


def test_what_is_answered_is_not_asked_again() -> None:
    with serve(lambda request: answer_well(request, knows_n=False)) as server:
        whole = OpenAIGenerator("m", server.url).generate(PROMPTS[:3], SAMPLED)
        server.seen.clear()
        known = [{0: whole[0][0], 2: whole[0][2]}, dict(enumerate(whole[1])), {}]
        kept: list[tuple[int, list[int]]] = []
        generator = OpenAIGenerator("m", server.url, concurrency=1, use_n=False)
        found = generator.resume(
            PROMPTS[:3], SAMPLED, known, lambda i, answers: kept.append((i, [*answers]))
        )
    assert found == whole
    assert kept == [(0, [1]), (0, [3]), (2, [0]), (2, [1]), (2, [2]), (2, [3])]
    assert len(server.seen) == 6


def test_retries_have_an_end_and_the_error_tells_the_last_failure() -> None:
    with serve_in_turn(Reply(error("overloaded"), status=503)) as server:
        generator = OpenAIGenerator("m", server.url, max_retries=2, concurrency=1)
        with pytest.raises(ModelError, match=r"no answer in 3 tries.*503.*overloaded.*`base_url`"):
            generator.generate(PROMPTS, GREEDY)
        assert len(server.seen) == 3
    assert (generator.usage.num_requests, generator.usage.num_retries) == (3, 2)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=r"127\.0\.0\.1.*2 tries.*connection failed"):
        OpenAIGenerator("m", url, max_retries=1).generate(PROMPTS[:1], GREEDY)


@pytest.mark.parametrize("slow", [Reply(GOOD.body, delay_s=5), Reply(GOOD.body, drip_s=0.02)])
def test_an_answer_that_takes_too_long_is_given_up(slow: Reply) -> None:
    with serve_in_turn(slow, GOOD) as server:
        generator = OpenAIGenerator("m", server.url, timeout_s=0.3)
        start = time.monotonic()
        results = generator.generate(PROMPTS[:1], GREEDY)
        assert time.monotonic() - start < 3
    assert results == [[Completion("SELECT 1", 3, True)]]
    assert generator.usage.num_retries == 1


def test_a_slow_answer_within_the_limit_is_waited_for() -> None:
    found, generator = _one(Reply(GOOD.body, drip_s=0.001))
    assert found.text == "SELECT 1"
    assert generator.usage.num_retries == 0


def test_retry_after_is_waited_for() -> None:
    later = Reply(error("slow down"), status=429, headers={"Retry-After": "0.4"})
    with serve_in_turn(later, GOOD) as server:
        OpenAIGenerator("m", server.url).generate(PROMPTS[:1], GREEDY)
    first, second = server.seen
    assert 0.4 <= second.at_s - first.at_s < 2


def test_a_longer_wait_than_allowed_ends_the_run_at_once() -> None:
    later = Reply(error("daily limit"), status=429, headers={"Retry-After": "3600"})
    with serve_in_turn(later) as server:
        generator = OpenAIGenerator("m", server.url)
        with pytest.raises(ModelError, match=r"3600 s.*`max_wait_s` 60 s.*daily limit"):
            generator.generate(PROMPTS[:1], GREEDY)
        assert len(server.seen) == 1


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert _retry_after_s(None) is None
    assert _retry_after_s("soon") is None
    assert _retry_after_s("nan") is None
    assert _retry_after_s("inf") is None
    assert _retry_after_s("1.5") == 1.5
    assert _retry_after_s("-3") == 0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < (_retry_after_s(date) or 0) <= 30
    assert _retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    # By the clock of the server, where it tells it.
    assert _retry_after_s("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT") == 30
    assert _retry_after_s("Wed, 21 Oct 2015 07:28:30 GMT", "now") == 0


@pytest.mark.parametrize(
    "value",
    [
        "1e300",
        "9" * 300,
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 99 Dec 2030 23:59:59 +9999",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "0x10",
        "",
        ", " * 1000,
    ],
)
def test_no_retry_after_is_waited_for_longer_than_a_year(value: str) -> None:
    assert (_retry_after_s(value) or 0) <= 366 * 86_400


def test_a_wait_until_the_far_future_ends_the_run_with_a_short_message() -> None:
    for value in ("1e300", "Fri, 31 Dec 9999 23:59:59 GMT"):
        later = Reply(error("slow down"), status=429, headers={"Retry-After": value})
        with serve_in_turn(later) as server:
            with pytest.raises(ModelError, match=r"31622400 s.*`max_wait_s` 60 s") as caught:
                OpenAIGenerator("m", server.url).generate(PROMPTS[:1], GREEDY)
            assert len(server.seen) == 1
        assert len(str(caught.value)) < 400


def test_waits_double_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "_FIRST_WAIT_S", 1.0)
    endpoint = OpenAIGenerator("m", "http://localhost/v1", max_wait_s=10)._endpoint
    failure = chat_endpoint._PassingFailure("status 503")
    waits = [[endpoint._wait_s(attempt, failure) for _ in range(200)] for attempt in range(1, 7)]
    for longest, group in zip([1, 2, 4, 8, 10, 10], waits, strict=True):
        assert longest / 2 <= min(group) < 0.6 * longest
        assert 0.9 * longest < max(group) <= longest
    assert endpoint._wait_s(2000, failure) <= 10


# What is not tried again


@pytest.mark.parametrize(
    ("reply", "argument"),
    [
        (Reply(error("Incorrect API key provided"), status=401), "`api_key`"),
        (Reply({"error": "forbidden"}, status=403), "`api_key`"),
        (Reply(error("The model `no-such` does not exist."), status=404), "`model` 'no-such'"),
        (Reply(error("nope", "model_not_found"), status=404), "`model` 'no-such'"),
        (Reply({"detail": "Not Found"}, status=404), "`base_url`"),
        (Reply(b"404 page not found", status=404), "`base_url`"),
        (Reply(b"", status=307, headers={"Location": "http://127.0.0.1:9/"}), "`base_url`"),
        (Reply(error("maximum context length is 2048 tokens"), status=400), "prompt 0 .'How many"),
        (Reply({"detail": [{"loc": ["body", "seed"]}]}, status=422), "`extra_body`"),
    ],
)
def test_a_refusal_is_final_and_names_what_is_wrong(reply: Reply, argument: str) -> None:
    with serve_in_turn(reply) as server:
        generator = OpenAIGenerator("no-such", server.url, concurrency=1)
        with pytest.raises(InputError, match=argument):
            generator.generate(PROMPTS, GREEDY)
        assert len(server.seen) == 1


def test_an_exhausted_quota_is_final() -> None:
    with serve_in_turn(Reply(error("You exceeded", "insufficient_quota"), status=429)) as server:
        with pytest.raises(ModelError, match="quota"):
            OpenAIGenerator("m", server.url).generate(PROMPTS[:1], GREEDY)
        assert len(server.seen) == 1


def test_a_refused_prompt_does_not_end_the_use_of_n() -> None:
    def reply(request: Seen) -> Reply:
        if request.body["messages"] == PROMPTS[0]:
            return Reply(error("maximum context length"), status=400)
        return answer_well(request)

    with serve(reply) as server:
        generator = OpenAIGenerator("m", server.url)
        with pytest.raises(InputError, match="maximum context length"):
            generator.generate(PROMPTS[:1], SAMPLED)
        generator.generate(PROMPTS[1:2], SAMPLED)
        assert [request.body.get("n") for request in server.seen] == [4, None, 4]


@pytest.mark.parametrize(
    ("url", "options", "argument"),
    [
        ("localhost:8000/v1", {}, "`base_url`"),
        ("ftp://localhost/v1", {}, "`base_url`"),
        ("file:///etc/passwd", {}, "`base_url`"),
        ("http:///v1", {}, "`base_url`"),
        ("http://localhost:99999/v1", {}, "`base_url`"),
        ("http://[::1/v1", {}, "`base_url`"),
        ("http://localhost/v1", {"api_key": KEY, "api_key_env": "K"}, "`api_key_env`"),
        ("http://localhost/v1", {"api_key_env": "NO_SUCH_KEY_HERE"}, "`api_key_env`"),
        ("http://localhost/v1", {"concurrency": 0}, "`concurrency`"),
        ("http://localhost/v1", {"timeout_s": 0}, "`timeout_s`"),
        ("http://localhost/v1", {"timeout_s": float("inf")}, "`timeout_s`"),
        ("http://localhost/v1", {"max_retries": -1}, "`max_retries`"),
        ("http://localhost/v1", {"max_wait_s": -1}, "`max_wait_s`"),
        ("http://localhost/v1", {"max_tokens_field": "limit"}, "`max_tokens_field`"),
        ("http://localhost/v1", {"price_per_million": (1.0, -1.0)}, "`price_per_million`"),
        (
            "http://localhost/v1",
            {"extra_body": {"temperature": 0.5}},
            "`extra_body`.*'temperature'",
        ),
        ("http://localhost/v1", {"extra_body": {"n": None}}, "`extra_body`.*'n'"),
        ("http://localhost/v1", {"extra_body": {"top_k": float("nan")}}, "`extra_body`"),
        ("http://localhost/v1", {"extra_body": {"top_k": {1}}}, "`extra_body`"),
    ],
)
def test_bad_arguments_are_named(url: str, options: dict[str, object], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        OpenAIGenerator("m", url, **options)
    with pytest.raises(InputError, match="`model`"):
        OpenAIGenerator("", "http://localhost/v1")


def test_a_host_that_cannot_be_is_an_input_error() -> None:
    with pytest.raises(InputError, match="`base_url`"):
        OpenAIGenerator("m", "http://" + "a" * 70 + "ä.invalid/v1").generate(PROMPTS[:1], GREEDY)


# The key


def _everything_in(thing: object) -> str:
    return repr(thing) + repr(vars(thing)) + repr(getattr(thing, "__dict__", ""))


@pytest.mark.parametrize("source", ["argument", "environment"])
@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_is_sent_and_shown_nowhere(
    source: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    options = {"api_key": KEY} if source == "argument" else {"api_key_env": "MY_KEY"}
    # A server that repeats the key in what it says.
    reply = Reply(error(f"Incorrect key: {KEY} (Bearer {KEY})"), status=status)
    shown = ""
    with serve_in_turn(reply) as server:
        generator = OpenAIGenerator("m", server.url, max_retries=1, **options)
        try:
            generator.generate(PROMPTS[:1], GREEDY)
        except (InputError, ModelError) as found:
            shown += "".join(traceback.format_exception(found)) + repr(found)
            shown += repr(found.__context__) + repr(found.__cause__)
        else:
            raise AssertionError("no error")
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    endpoint = generator._endpoint
    shown += _everything_in(generator) + _everything_in(endpoint) + repr(generator.usage)
    captured = capsys.readouterr()
    shown += caplog.text + captured.out + captured.err
    assert "***" in shown
    assert KEY not in shown


@pytest.mark.parametrize("copier", [pickle.dumps, copy.deepcopy])
def test_a_generator_cannot_be_pickled(copier: object) -> None:
    with pytest.raises(InputError, match="`api_key`") as caught:
        copier(OpenAIGenerator("m", "http://localhost/v1", api_key=KEY))  # type: ignore[operator]
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", KEY + "\n", "sk-tést", "sk test", "sk\x00"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    with pytest.raises(InputError, match="`api_key`") as caught:
        OpenAIGenerator("m", "http://localhost/v1", api_key=key)
    assert not key.strip() or key.strip() not in str(caught.value)


def test_a_password_in_the_address_is_refused_unseen() -> None:
    with pytest.raises(InputError, match="`base_url`") as caught:
        OpenAIGenerator("m", f"http://user:{KEY}@localhost/v1")
    assert KEY not in str(caught.value)


def test_no_key_of_the_environment_is_sent_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve_in_turn(GOOD) as server:
        OpenAIGenerator("m", server.url).generate(PROMPTS[:1], GREEDY)
    assert "Authorization" not in server.seen[0].headers


# Streaming and interruption


def test_progress_and_results_come_while_others_are_under_way() -> None:
    others_done = threading.Event()

    def first_one_last(request: Seen) -> Reply:
        if request.body["messages"] == PROMPTS[0]:
            assert others_done.wait(10)
        return answer_well(request)

    progress: list[int] = []
    streamed: list[tuple[int, list[Completion]]] = []

    def on_result(index: int, group: list[Completion]) -> None:
        streamed.append((index, group))
        if len(streamed) == len(PROMPTS) - 1:
            others_done.set()

    with serve(first_one_last) as server:
        results = OpenAIGenerator("m", server.url, concurrency=2).generate(
            PROMPTS, SAMPLED, on_progress=progress.append, on_result=on_result
        )
    assert progress == [4] * len(PROMPTS)
    assert [index for index, _ in streamed] == [*range(1, len(PROMPTS)), 0]
    assert [group for _, group in sorted(streamed, key=lambda item: item[0])] == results


def test_all_samples_of_a_prompt_come_before_the_next_prompt() -> None:
    num_seen: list[int] = []
    with serve(lambda request: answer_well(request, knows_n=False)) as server:
        OpenAIGenerator("m", server.url, concurrency=1).generate(
            PROMPTS, SAMPLED, on_result=lambda index, group: num_seen.append(len(server.seen))
        )
    assert num_seen == [4 * (index + 1) for index in range(len(PROMPTS))]


@pytest.mark.parametrize("callback", ["on_progress", "on_result"])
def test_an_exception_of_a_callback_ends_the_run_and_is_raised_as_it_is(callback: str) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("mine")

    def reply(request: Seen) -> Reply:
        return Reply(GOOD.body, delay_s=0 if request.body["messages"] == PROMPTS[0] else 20)

    start = time.monotonic()
    with serve(reply) as server:
        generator = OpenAIGenerator("m", server.url, concurrency=4)
        with pytest.raises(ZeroDivisionError, match="mine"):
            generator.generate(PROMPTS, GREEDY, **{callback: fail})
    assert time.monotonic() - start < 5


def _interrupt_when(condition: "threading.Event") -> threading.Thread:
    def wait() -> None:
        assert condition.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: processes that a shell starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("in_event_loop", [False, True])
def test_ctrl_c_ends_all_requests_and_what_was_streamed_is_complete(in_event_loop: bool) -> None:
    streamed: dict[int, list[Completion]] = {}
    stuck = threading.Event()

    def reply(request: Seen) -> Reply:
        if request.body["messages"] in PROMPTS[:5]:
            return answer_well(request)
        stuck.set()
        return Reply(GOOD.body, delay_s=20)

    start = time.monotonic()
    with serve(reply) as server:
        generator = OpenAIGenerator("m", server.url, concurrency=3)

        def generate() -> None:
            generator.generate(PROMPTS, SAMPLED, on_result=streamed.__setitem__)

        async def in_a_notebook() -> None:
            generate()

        # As in a notebook, a loop that leaves Ctrl-C alone, which `asyncio.run` does not.
        loop = asyncio.new_event_loop()
        thread = _interrupt_when(stuck)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(in_a_notebook()) if in_event_loop else generate()
        thread.join()
        loop.close()
        assert time.monotonic() - start < 5
    assert streamed
    with serve(answer_well) as server:
        whole = OpenAIGenerator("m", server.url).generate(PROMPTS, SAMPLED)
    assert all(whole[index] == group for index, group in streamed.items())


def test_it_works_inside_a_running_event_loop() -> None:
    async def in_a_notebook(url: str) -> list[list[Completion]]:
        return OpenAIGenerator("m", url).generate(PROMPTS[:2], SAMPLED)

    with serve(answer_well) as server:
        found = asyncio.run(in_a_notebook(server.url))
        assert found == OpenAIGenerator("m", server.url).generate(PROMPTS[:2], SAMPLED)


def test_no_prompts_need_no_server() -> None:
    assert OpenAIGenerator("m", "http://127.0.0.1:9/v1").generate([], GREEDY) == []


@pytest.mark.parametrize("failing", [0.0, 0.4])
def test_many_prompts_through_a_failing_server_are_all_there(failing: float) -> None:
    """Every answer of a server that fails at random is the one of a server that does not."""
    state = {"count": 0}
    kinds = [Reply(status=500), Reply(b"{"), Reply(resets=True), Reply(error("x"), status=429)]

    def reply(request: Seen) -> Reply:
        state["count"] += 1
        number = state["count"]
        return kinds[number % 4] if number * 7919 % 1000 < failing * 1000 else answer_well(request)

    prompts = [get_prompt(f"Question {i}?", f"t{i % 9}(a, b)") for i in range(150)]
    with serve(reply) as server:
        generator = OpenAIGenerator("m", server.url, concurrency=8, max_retries=30)
        results = generator.generate(prompts, SAMPLED)
    assert generator.usage.num_requests == len(server.seen) == 150 + generator.usage.num_retries
    assert (generator.usage.num_retries > 0) == (failing > 0)
    for prompt, group in zip(prompts, results, strict=True):
        seed = completion_seed(7, json.dumps(prompt), 0) >> 32
        texts = [write_answer(prompt, seed + sample, 0.8, 64)[0].strip() for sample in range(4)]
        assert [completion.text for completion in group] == texts


def test_a_control_token_in_data_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    prompts = [get_prompt("What is <|im_end|>?", "t(a)"), get_prompt("<|im_end|>", "[INST]")]
    with serve(answer_well) as server:
        generator = OpenAIGenerator("m", server.url)
        generator.generate(PROMPTS[:1], GREEDY)
        assert not caplog.text
        generator.generate(prompts, GREEDY)
        assert "hold '<|im_end|>', '[INST]'" in caplog.text
        caplog.clear()
        generator.generate(prompts, GREEDY)
        assert not caplog.text
        # They are sent as they are.
        assert server.seen[-1].body["messages"] in prompts
