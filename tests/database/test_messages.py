"""Messages of workers: values come back as they were, and what is no message is refused."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import (
    LimitKind,
    MapValue,
    QueryResult,
    QueryStatus,
    TypedText,
)
from sense_trl.database.messages import Failed, Message, decode, encode, pack_rows
from sense_trl.database.process import WorkerGoneError, WorkerSupervisor
from sense_trl.database.worker import Executed, IsolatedEngine, Opened
from sense_trl.errors import DatabaseError

ANSWER = Opened | Executed | Failed
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
TEXT = st.text(st.characters(categories=None))
LEAVES = (
    PLAIN
    | TEXT
    | st.decimals(allow_nan=False)
    | st.datetimes().map(lambda value: value.replace(fold=0))
    | st.dates()
    | st.times().map(lambda value: value.replace(fold=0))
    | st.timedeltas()
    | st.uuids()
    | st.builds(TypedText, TEXT, TEXT)
)
VALUES = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(TEXT, parts, max_size=2)
        | st.dictionaries(TEXT, parts, max_size=2).map(MapValue)
    ),
    max_leaves=4,
)


def send(message: Message) -> object:
    return decode(encode(message), ANSWER)


@settings(max_examples=60)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=3), TEXT)
def test_results_come_back_as_they_were(rows: list[tuple[object, ...]], name: str) -> None:
    result = QueryResult(QueryStatus.OK, (name, "b"), tuple(rows), None, 0.5, 2**70)
    found = send(Executed(pack_rows(result)))
    assert found == Executed(result)
    assert repr(found) == repr(Executed(result))


def test_each_kind_of_value_by_hand() -> None:
    row = (
        *(-(2**63), 2**64 - 1, 2**64, -(2**63) - 1, True, None, 1.5, math.inf, b"\x00\xff"),
        *("é", "\udcff", decimal.Decimal("1.50"), datetime.datetime(2020, 1, 2, 3, 4, 5, 6)),
        *(datetime.timedelta(-1, 2, 3), uuid.UUID(int=7), TypedText("BIT", "01"), (1, [2])),
        *(MapValue({(1, 2): "a"}), {"a": decimal.Decimal(1)}),
    )
    result = QueryResult(QueryStatus.TOO_LARGE, (), (row,), "é", 0.0, None, LimitKind.MEMORY)
    found = send(Executed(pack_rows(result)))
    assert isinstance(found, Executed)
    [read] = found.result.rows
    assert read == row and list(map(type, read)) == list(map(type, row))


def test_rows_of_plain_values_are_not_touched() -> None:
    result = QueryResult(QueryStatus.OK, ("a",), ((1,), ("x",)), None, 0.0, None)
    assert pack_rows(result) is result


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc1\xc1",
        b"\x93",
        b"\x91" * 100_000,
        b"\xc1" + b"\x91" * 100_000,
        encode(["Nobody", 1]),
        encode(["Opened", 1]),
        encode(["Opened"]),
        encode(["Executed", {"status": "ok"}]),
        encode(["Opened", msgspec.msgpack.Ext(9, b"")]),
        b"\xc1" + encode(["Opened", msgspec.msgpack.Ext(3, encode(["decimal", "x"]))]),
        b"\xc1" + encode(["Opened", msgspec.msgpack.Ext(3, encode(["date"]))]),
        b"\xc1" + encode(["Opened", msgspec.msgpack.Ext(3, encode(["no kind", 1]))]),
        b"\xc1" + encode(["Opened", msgspec.msgpack.Ext(1, b"\xff")]),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, ANSWER)


class Answering:
    """Stands for a process that sends what it likes."""

    data = b""

    def __init__(self, entry: str, arguments: list[str]) -> None: ...

    def send(self, message: bytes) -> None: ...

    def receive(self, timeout_s: float) -> bytes:
        return self.data


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encode(Opened("1")), None),
        (encode(Failed("no file")), DatabaseError),
        (encode(["Nobody", 1]), WorkerGoneError),
    ],
)
def test_an_answer_that_was_not_declared_is_the_end_of_a_worker(
    monkeypatch: pytest.MonkeyPatch, data: bytes, error: type[Exception] | None
) -> None:
    monkeypatch.setattr("sense_trl.database.process.WorkerProcess", Answering)
    monkeypatch.setattr(Answering, "data", data)
    supervisor: WorkerSupervisor[Opened] = WorkerSupervisor("nobody:nothing", 0, Opened)
    supervisor.send("anything")
    if error is None:
        assert supervisor.receive(1.0) == Opened("1")
    else:
        with pytest.raises(error):
            supervisor.receive(1.0)


def test_a_message_that_is_too_long_is_not_read(fresh_db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sense_trl.database.process._MAX_MESSAGE_BYTES", 1000)
    with IsolatedEngine(fresh_db("CREATE TABLE t (a);")) as engine:
        assert engine.execute("SELECT 1").ok
        result = engine.execute("SELECT hex(zeroblob(5000))")
    assert result.status is QueryStatus.TOO_LARGE
