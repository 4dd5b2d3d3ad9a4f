"""`ChatEndpoint`: one request to an OpenAI-compatible server, repeated until it is answered.

A failure that may pass (rate limit, server error, lost connection, broken answer) is tried again
with growing, jittered waits; whatever a second try cannot change is raised at once. What a server
sends is bounded in time and size, also behind compression, and no redirect is followed, which would
take the key elsewhere. The key is in no attribute, representation, pickle or message.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import os
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from sense_trl.errors import InputError, ModelError

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 1.0
_MAX_CONNECT_S = 10.0
_RETRIED = frozenset({408, 409, 425, 429})
# "Not implemented" and "version not supported" will be the answer next time, too.
_LASTING = frozenset({501, 505})
_MAX_MESSAGE_CHARS = 300
# Of one answer, compressed or not; many samples of many tokens have less.
_MAX_BODY_BYTES = 16 * 2**20
_MAX_CHOICES = 4096
# No answer has more tokens.
_MAX_TOKENS = 10**9
# "Never" would do as well.
_MAX_RETRY_AFTER_S = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a model.

    Attributes:
        text: what the model wrote, or why it refuses.
        finish_reason: as the server names it (`"stop"`, `"length"`, `"content_filter"`);
            `"refusal"` for a refusal marked as such, `"missing"` where the server says nothing,
            `"malformed"` for what is no answer beside others that are.
    """

    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """The answers to one request, and the tokens it took; `None` if the server does not count."""

    choices: tuple[Choice, ...]
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None


class RequestRefused(Exception):
    """The server refuses this request, and would refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message!r}")


class _PassingFailure(Exception):
    """A failure that may pass: the request is worth repeating."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class ChatEndpoint:
    """Sends chat requests, with retries; see `OpenAIGenerator` for the arguments.

    Attributes:
        num_requests: requests sent, retries included.
        num_retries: requests sent again.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        api_key_env: str | None,
        concurrency: int,
        timeout_s: float,
        max_retries: int,
        max_wait_s: float,
    ) -> None:
        self._url, self._is_local = _chat_url(base_url)
        self._get_key = _key_reader(api_key, api_key_env)
        self._get_key()
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._max_wait_s = max_wait_s
        # Not the global generator, whose numbers belong to the experiment.
        self._random = random.Random()
        self.num_requests = 0
        self.num_retries = 0

    @property
    def url(self) -> str:
        """The address that requests are sent to."""
        return self._url

    def __getstate__(self) -> dict[str, Any]:
        raise InputError(
            "A generator with an endpoint cannot be pickled or copied: `api_key` would go with it. "
            "Make one in each process."
        )

    def connect(self) -> httpx2.AsyncClient:
        """A client for `ask`, to be used as an asynchronous context manager."""
        import httpx2

        return httpx2.AsyncClient(
            # What is compressed otherwise could not be read within bounds.
            headers={"Accept-Encoding": "gzip", **_headers(self._get_key())},
            timeout=httpx2.Timeout(
                self._timeout_s, connect=min(self._timeout_s, _MAX_CONNECT_S), pool=None
            ),
            limits=httpx2.Limits(max_connections=self._concurrency),
            # A proxy leads away from this machine.
            trust_env=not self._is_local,
        )

    async def ask(
        self,
        client: httpx2.AsyncClient,
        body: Mapping[str, Any],
        *,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> ChatResponse:
        """Send `body` to the server and wait for its answers.

        A prompt that a content filter rejects is answered, with `finish_reason`
        `"content_filter"`.

        Args:
            client: see `connect`.
            body: fields of the request.
            may_retry: asked before another try.

        Raises:
            InputError: the address, the key or the model is wrong.
            ModelError: the server failed more often than `max_retries` allows, asks for a longer
                wait than `max_wait_s`, or sends more than can be an answer.
            RequestRefused: something else about this request is not accepted.
        """
        attempt = 0
        while True:
            attempt += 1
            self.num_requests += 1
            try:
                return await self._ask_once(client, body)
            except _PassingFailure as failure:
                wait_s = self._wait_s(attempt, failure)
                if attempt > self._max_retries or not may_retry():
                    raise ModelError(
                        f"{self._url} gave no answer in {attempt} tries; the last: {failure}. "
                        "Check that the server is up and that `base_url` is its address; if it is "
                        "overloaded, lower `concurrency` or raise `max_retries` or `timeout_s`."
                    ) from None
                logger.warning(
                    "%s: %s; retry %d of %d in %.1f s",
                    self._url,
                    failure,
                    attempt,
                    self._max_retries,
                    wait_s,
                )
            await asyncio.sleep(wait_s)
            self.num_retries += 1

    async def _ask_once(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> ChatResponse:
        import httpx2

        try:
            # The client's own limits start anew with every byte that comes.
            async with (
                asyncio.timeout(self._timeout_s),
                client.stream(
                    "POST",
                    self._url,
                    content=json.dumps(body),
                    headers={"Content-Type": "application/json"},
                ) as response,
            ):
                content = await self._read_body(response)
        except httpx2.InvalidURL as error:
            raise InputError(f"`base_url`: {self._url!r} is no address ({error}).") from None
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise _PassingFailure(f"no answer within `timeout_s` {self._timeout_s:g} s") from None
        except httpx2.RequestError as error:
            reason = self._shown(f"{type(error).__name__}: {error}")
            raise _PassingFailure(f"connection failed ({reason})") from None
        if response.status_code == 200:
            return self._read(content)
        return self._read_error(response, content, body)

    async def _read_body(self, response: httpx2.Response) -> bytes:
        """The content of an answer, decompressed; its size is checked as it comes."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise ModelError(
                f"{self._url} answers in the content encoding {self._shown(encoding)!r}; gzip or "
                "none was asked for. Switch it off at the server or at what stands before it."
            )
        unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        content = bytearray()
        num_sent = 0
        async for part in response.aiter_raw():
            num_sent += len(part)
            try:
                # One byte more than is allowed shows that there is more.
                rest = _MAX_BODY_BYTES + 1 - len(content)
                content += part if unpack is None else unpack.decompress(part, rest)
            except zlib.error as error:
                raise _PassingFailure(f"the answer is no gzip ({error})") from None
            if max(num_sent, len(content)) > _MAX_BODY_BYTES:
                raise ModelError(
                    f"{self._url} sends more than {_MAX_BODY_BYTES // 2**20} MiB in one answer, "
                    "and was cut off: no chat completion is so long. Check that `base_url` is the "
                    "address of a chat-completions server; if it is, ask for fewer or shorter "
                    "samples at a time."
                )
        if unpack is not None and not unpack.eof:
            raise _PassingFailure("the answer ends within its gzip")
        return bytes(content)

    def _read(self, content: bytes) -> ChatResponse:
        try:
            # JSON is UTF-8, -16 or -32 whatever the header says, and these tell themselves apart.
            answer = json.loads(content)
            usage = answer.get("usage")
            choices = tuple(map(self._read_choice, _in_order(answer["choices"][:_MAX_CHOICES])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            choices = ()
        if all(choice is None for choice in choices):
            text = content.decode("utf-8", "replace")
            raise _PassingFailure(f"the answer is no chat completion: {self._shown(text)!r}")
        usage = usage if isinstance(usage, dict) else {}
        return ChatResponse(
            # The readable ones are paid for.
            tuple(choice or Choice("", "malformed") for choice in choices),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _read_choice(self, choice: Any) -> Choice | None:
        """One of the answers; `None` if it is none."""
        try:
            message = choice["message"]
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            refusal = message.get("refusal")
            reason = "refusal" if refusal else choice.get("finish_reason") or "missing"
        except (KeyError, TypeError, AttributeError):
            return None
        # Half of a surrogate pair, which JSON can name, cannot be written to a file.
        text, reason = (
            value.encode("utf-8", "replace").decode("utf-8")
            for value in (str(content or refusal or ""), str(reason))
        )
        return Choice(text, self._shown(reason))

    def _read_error(
        self, response: httpx2.Response, content: bytes, body: Mapping[str, Any]
    ) -> ChatResponse:
        """Raise what an answer with an error status means; a filtered prompt is no error."""
        status = response.status_code
        code, text = _error_fields(content)
        message = self._shown(text)
        if code == "content_filter":
            return ChatResponse((Choice("", "content_filter"),) * int(body.get("n", 1)))
        if code == "insufficient_quota":
            raise ModelError(
                f"{self._url} refuses further requests: the account's quota is used up "
                f"({message!r}). Top it up, then run again."
            )
        if status in _RETRIED or (status >= 500 and status not in _LASTING):
            headers = response.headers
            retry_after = _retry_after_s(headers.get("retry-after"), headers.get("date"))
            raise _PassingFailure(f"status {status} ({message!r})", retry_after)
        if status in (401, 403):
            raise InputError(
                f"`api_key`: {self._url} does not accept it (status {status}: {message!r}). "
                f"{'Check' if self._get_key() else 'None was given: set'} `api_key`, or the "
                "environment variable that `api_key_env` names."
            )
        model = body["model"]
        if status == 404 and (
            code == "model_not_found" or ("model" in message.lower() and model in text)
        ):
            raise InputError(
                f"`model` {model!r} is not served by {self._url} ({message!r}). Use a name that "
                "the server lists under /models."
            )
        if status in (404, 405) or 300 <= status < 400:
            raise InputError(
                f"`base_url`: no chat completions at {self._url} (status {status}: {message!r}). "
                "Expected the address before /chat/completions; for most servers it ends in /v1."
            )
        raise RequestRefused(status, message)

    def _wait_s(self, attempt: int, failure: _PassingFailure) -> float:
        """Seconds until the next try: exponential with jitter, and what the server asks for."""
        after_s = failure.retry_after_s or 0.0
        if after_s > self._max_wait_s:
            raise ModelError(
                f"{self._url} asks to wait {after_s:.0f} s, longer than `max_wait_s` "
                f"{self._max_wait_s:g} s: {failure}. Run again later, or raise `max_wait_s`."
            ) from None
        wait_s = min(self._max_wait_s, _FIRST_WAIT_S * 2.0 ** min(attempt - 1, 32))
        # Those who were turned away together do not come back together.
        return max(wait_s * self._random.uniform(0.5, 1), after_s * self._random.uniform(1, 1.25))

    def _shown(self, text: str) -> str:
        """`text` of a server for a message: on one line, short, without the key."""
        key = self._get_key()
        line = " ".join((text.replace(key, "***") if key else text).split())
        return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 3] + "..."


def _chat_url(base_url: str) -> tuple[str, bool]:
    """The address of chat completions, and whether it is on this machine."""
    expected = 'expected the server\'s address, e.g. "http://localhost:8000/v1"'
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"`base_url` is no address ({error}); {expected}.") from error
    if parts.username is not None or parts.password is not None:
        raise InputError("`base_url` holds a user name or a password; give `api_key` instead.")
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"`base_url` is {base_url!r}; {expected}, with http or https.")
    path = parts.path.rstrip("/") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_reader(api_key: str | None, api_key_env: str | None) -> Callable[[], str | None]:
    """A function that gives the key: what holds the function does not show the key."""
    if api_key is not None and api_key_env is not None:
        raise InputError("`api_key` and `api_key_env` are both given; expected one of them.")

    def read() -> str | None:
        if api_key_env is None:
            return _checked_key(api_key, "api_key")
        if api_key_env not in os.environ:
            raise InputError(
                f"`api_key_env` is {api_key_env!r}, but there is no such environment variable. "
                "Set it to the server's key."
            )
        return _checked_key(os.environ[api_key_env], "api_key_env")

    return read


def _checked_key(key: str | None, argument: str) -> str | None:
    # A client would show in its error what it cannot send.
    if key is not None and not (key.isascii() and key.isprintable() and key.split() == [key]):
        raise InputError(
            f"`{argument}`: the key is empty or has blanks, line ends or other characters that a "
            "header cannot carry. Copy it again."
        )
    return key


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _in_order(choices: list[Any]) -> list[Any]:
    """Answers in the order of their index, where the server numbers them all."""
    indices: list[Any] = [
        choice.get("index") if isinstance(choice, dict) else None for choice in choices
    ]
    if not all(type(index) is int for index in indices):
        return choices
    return [choices[i] for i in sorted(range(len(choices)), key=indices.__getitem__)]


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def _error_fields(body: bytes) -> tuple[str, str]:
    """Code and message of an error; servers write it in four ways, or as plain text."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return "", text
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return "", str(error)
    return str(error.get("code", "")), str(error.get("message") or error.get("detail") or text)


def _retry_after_s(value: str | None, now: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3).

    Args:
        value: of the header.
        now: of the header `Date`, by whose clock the other date is.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = _read_date(value)
        if date is None:
            return None
        seconds = (date - ((now and _read_date(now)) or datetime.now(UTC))).total_seconds()
    return min(_MAX_RETRY_AFTER_S, max(0.0, seconds)) if math.isfinite(seconds) else None


def _read_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
        return date.replace(tzinfo=date.tzinfo or UTC)
    # What is raised at numbers that no date has is up to the number.
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
