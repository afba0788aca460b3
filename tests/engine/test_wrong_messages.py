"""A message that cannot be right ends the job with words; it corrupts no memory.

One rank is an engine. The other one is a bare transport, which sends what it likes.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = codes.uncoded(2)
ROWS = len(CODE.tree.left)  # 3: two shards and their sum
STARTS = [0, 32, 64, 96]  # slices of 16 elements
WINDOW = 4
ROW, RESULT, PROGRESS, CONTROL = range(4)
STEP_BITS, BUCKET_BITS, ROW_BITS, SESSION_BITS = 4, 2, 2, 3
HEADER, LONG = 7, 1 << 62


def tag(kind: int, step: int = 0, bucket: int = 0, row: int = 0) -> int:
    """The address of csrc/engine/address.h, of the first session."""
    value = step % (1 << STEP_BITS)
    value = (value << BUCKET_BITS) | bucket
    value = (value << ROW_BITS) | row
    return (value << (SESSION_BITS + 2)) | kind


class Stranger:
    """A rank that sends what it likes, and takes all that comes."""

    def __init__(self, hub: Any) -> None:
        self.transport = _engine.local_transport(hub, 1)
        self.memory: list[Any] = []

    def send(self, where: int, data: np.ndarray) -> None:
        self.memory.append(data)
        self.transport.send(0, where, data.view(np.uint8), len(self.memory))

    def look(self) -> None:
        while (found := self.transport.probe()) is not None:
            into = np.empty(max(1, found[2]), np.uint8)
            self.memory.append(into)
            self.transport.receive(into, len(self.memory))
        self.transport.poll()


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any, Stranger]]:
    """The engine, its exchange with step 0 begun, and the stranger."""
    hub = _engine.LocalHub(2)
    engine = _engine.Engine.over_local(hub, 0)
    tree = CODE.tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    settings = _engine.SessionSettings(plan=plan, bucket_starts=STARTS, window=WINDOW)
    exchange = _engine.Exchange(engine, settings)
    assert exchange.begin(0, 10.0)[0]
    stranger = Stranger(hub)
    yield engine, exchange, stranger
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(engine.stop, 0.0)
        while not stopped.done():  # it has an error to tell
            stranger.look()
            time.sleep(1e-3)


def elements(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


def until(condition: Any, stranger: Stranger) -> bool:
    end = time.monotonic() + 10.0
    while not condition() and time.monotonic() < end:
        stranger.look()
        time.sleep(1e-3)
    return bool(condition())


HEADERS = (np.array([LONG | 5 << 2 | ROW], np.int64), np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([(tag(ROW, bucket=3), elements(16))], "row 0 of bucket 3.*3 buckets"),
        ([(tag(ROW, row=3), elements(16))], "row 3 of bucket 0.*3 rows"),
        ([(tag(RESULT, bucket=3), elements(16))], "bucket 3, and there are 3"),
        ([(tag(ROW), elements(17))], "68 bytes where 64 were expected"),
        ([(tag(PROGRESS, step=1), elements(1))], "4 bytes where 0 were expected"),
        ([(tag(ROW, step=WINDOW + 1), elements(16))], "of step 5.*step 0.*window is 4"),
        ([(tag(RESULT), elements(16))] * 4, "slice of step 0 that is here already"),
        ([(CONTROL, elements(0))], "control message of 0 bytes"),
        ([(HEADER, HEADERS[1])], "header of 3 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_ends_the_job(pair: Any, messages: Any, words: str) -> None:
    engine, exchange, stranger = pair
    for where, data in messages:
        stranger.send(where, data)
    assert until(lambda: engine.failed, stranger)
    with pytest.raises(_engine.EngineFailure, match=f"worker 0 failed: .*{words}"):
        exchange.wait(0, 10.0)


def test_what_belongs_to_no_session_is_dropped(pair: Any) -> None:
    engine, exchange, stranger = pair
    stranger.send(tag(ROW) | 3 << 2, elements(5))  # the fourth session
    stranger.send(HEADER, HEADERS[0])
    stranger.send(CONTROL, elements(7))  # the message of that header
    stranger.send(tag(ROW, row=CODE.row_node(1, 0)), elements(16))
    assert until(lambda: exchange.counters().rows_useful == 1, stranger)
    assert not engine.failed


def test_late_rows_are_counted(pair: Any) -> None:
    """A row that comes after its slice was decoded changes nothing, and is told."""
    _worker, exchange, stranger = pair
    mine, theirs = CODE.row_node(0, 0), CODE.row_node(1, 0)
    data = exchange.acquire()
    np.frombuffer(data, np.float32)[:] = 1.0
    exchange.post(0, mine, data)
    for _ in range(2):
        for bucket in range(3):
            stranger.send(tag(ROW, bucket=bucket, row=theirs), elements(16))
    assert until(lambda: exchange.counters().rows_late == 3, stranger)
    counters = exchange.counters()
    assert (counters.rows_useful, counters.rows_redundant) == (6, 0)
    told = [(a.source, a.row, a.kind) for a in exchange.drain_arrivals()]
    useful, late = 0, 2
    assert told == [(0, mine, useful), (1, theirs, useful), (1, theirs, late)]


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_is_not_there_is_not_sent(pair: Any, row: int) -> None:
    _worker, exchange, _stranger = pair
    with pytest.raises(ValueError, match=f"3 rows, there is no row {row}"):
        exchange.post(0, row, exchange.acquire())


def test_memory_that_was_not_there_is_not_counted() -> None:
    engine = _engine.Engine.over_local(_engine.LocalHub(1), 0)
    tree = codes.uncoded(1).tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    huge = _engine.SessionSettings(plan=plan, bucket_starts=[0, 1 << 56])
    exchange = _engine.Exchange(engine, huge)
    with pytest.raises(MemoryError):
        exchange.acquire()
    assert engine.stats().pool_bytes == 0
    assert engine.stop(5.0)


def test_control_messages_are_heard_in_the_order_of_sending() -> None:
    """Although one that was announced later may be received first."""
    hub = _engine.LocalHub(2, 500, 1)
    engine, stranger = _engine.Engine.over_local(hub, 0), Stranger(hub)
    rounds = 100
    for number in range(rounds):
        blob = np.frombuffer(f"B{number}".encode(), np.uint8).copy()
        stranger.send(CONTROL, blob)
        engine.publish(b"")
    got = []
    for _ in range(rounds):
        blobs = None
        while blobs is None:
            stranger.look()
            blobs, _missing = engine.gather(0.1)
        got.append(blobs[1].decode())
    assert got == [str(number) for number in range(rounds)]
    stranger.send(CONTROL, np.frombuffer(b"G", np.uint8).copy())
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(engine.stop, 10.0)
        while not stopped.done():
            stranger.look()
            time.sleep(1e-3)
    assert stopped.result()
