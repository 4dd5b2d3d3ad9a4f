"""A chat-completions server on this machine that misbehaves on demand, and what it saw.

`ChatServer` answers each request with what a function makes of it, so that a test reads as a list
of replies. `write_answer` is the model behind well-behaved replies: text and length depend on
messages and seed alone.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUERIES = (
    "SELECT COUNT(*) FROM singer",
    "```sql\nSELECT name FROM singer ORDER BY age DESC LIMIT 1;\n```",
    "The query counts the rows:\n\n```\nSELECT AVG(age) FROM singer\n```\nIt has one column.",
    "SELECT country, COUNT(*) FROM singer GROUP BY country",
    "I'm sorry, but the schema does not say that.",
)


def write_answer(
    messages: list[dict[str, str]], seed: int, temperature: float, max_tokens: int
) -> tuple[str, int, str]:
    """Text, number of tokens (words and the end) and finish reason of a pretended model."""
    key = json.dumps([messages, seed if temperature > 0 else None])
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    words = f"{QUERIES[number % len(QUERIES)]} -- {number % 1000}".split(" ")
    if len(words) + 1 > max_tokens:
        return " ".join(words[:max_tokens]), max_tokens, "length"
    return " ".join(words) + " ", len(words) + 1, "stop"


@dataclass
class Reply:
    """What the server sends: `body` as JSON, or bytes as they are.

    An iterator is sent in chunks without a length, until it or the client's patience ends.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    # Before the answer, and between its bytes.
    delay_s: float = 0.0
    drip_s: float = 0.0
    # The connection is cut without an answer.
    resets: bool = False


@dataclass
class Seen:
    """A request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float


def completion(*answers: tuple[str, str], num_tokens: int | None = None) -> dict[str, Any]:
    """The body of an answer with (text, finish reason) choices."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
            for i, (text, reason) in enumerate(answers)
        ],
    }
    if num_tokens is not None:
        body["usage"] = {
            "prompt_tokens": 100,
            "completion_tokens": num_tokens,
            "total_tokens": 100 + num_tokens,
        }
    return body


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an error as OpenAI writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def answer_well(request: Seen, *, knows_n: bool = True) -> Reply:
    """What a correct server answers; one that does not know `n` ignores it."""
    body = request.body
    answers = [
        write_answer(
            body["messages"],
            body["seed"] + index,
            body["temperature"],
            body.get("max_tokens") or body["max_completion_tokens"],
        )
        for index in range(body.get("n", 1) if knows_n else 1)
    ]
    return Reply(
        completion(
            *((text, reason) for text, _, reason in answers),
            num_tokens=sum(num for _, num, _ in answers),
        )
    )


class ChatServer:
    """Runs in threads of its own until the block ends; see `serve`.

    Attributes:
        seen: the requests in the order in which they came.
        most_at_once: the largest number of requests under way at a time.
        num_sent: bytes of bodies sent in chunks.
    """

    def __init__(self, reply: Callable[[Seen], Reply]) -> None:
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self.num_sent = 0
        self._active = 0
        self._reply = reply
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            # A client that goes away must not leave a thread behind.
            timeout = 30

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                chat._answer(
                    self,
                    Seen(self.path, dict(self.headers), json.loads(content), time.monotonic()),
                )

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler, request: Seen) -> None:
        with self._lock:
            self.seen.append(request)
            self._active += 1
            self.most_at_once = max(self.most_at_once, self._active)
        try:
            self._send(handler, self._reply(request))
        except (BrokenPipeError, ConnectionResetError):
            # The client has given up.
            handler.close_connection = True
        finally:
            with self._lock:
                self._active -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        self.stopping.wait(reply.delay_s)
        if reply.resets:
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True
            handler.connection.close()
            return
        if isinstance(reply.body, Iterator):
            self._send_chunks(handler, reply)
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if not reply.drip_s:
            handler.wfile.write(content)
            return
        for position in range(len(content)):
            handler.wfile.write(content[position : position + 1])
            if self.stopping.wait(reply.drip_s):
                return

    def _send_chunks(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.send_response(reply.status)
        for name, value in {**reply.headers, "Transfer-Encoding": "chunked"}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for chunk in reply.body:
            self.num_sent += len(chunk)
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")


@contextmanager
def serve(reply: Callable[[Seen], Reply]) -> Iterator[ChatServer]:
    """A server on a free port of this machine for the time of the block."""
    server = ChatServer(reply)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serve_in_turn(*replies: Reply) -> Iterator[ChatServer]:
    """A server that gives these replies one after the other, and the last one from then on."""
    left = list(replies)
    lock = threading.Lock()

    def next_reply(request: Seen) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    with serve(next_reply) as server:
        yield server
