"""Engines over sockets whose peer dies: what it told one of them, all know.

The last rank is a bare socket or transport that dies after some messages, all others
are engines.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from engine import test_deputies as deputies

from codedgrad import codes
from codedgrad.errors import WorkerError
from codedgrad.job import _engine

CONTROL = 3  # the address of control messages
LIMIT_S = 20.0


def say(end: socket.socket, text: bytes) -> None:
    """Send a control message from a bare socket."""
    head = np.array([0x316D6763, CONTROL], np.uint32).tobytes()
    end.sendall(head + np.array([len(text)], np.uint64).tobytes() + text)


class Trio:
    """Two engines, and the sockets of a third worker, by rank."""

    def __init__(self) -> None:
        pairs = {pair: socket.socketpair() for pair in ((0, 1), (0, 2), (1, 2))}
        fds = [[-1] * 3 for _ in range(3)]
        for (a, b), ends in pairs.items():
            fds[a][b], fds[b][a] = (end.detach() for end in ends)
        self.engines = [_engine.Engine.over_sockets(r, fds[r]) for r in range(2)]
        self.third = [socket.socket(fileno=fd) for fd in fds[2][:2]]

    def say(self, rank: int, text: bytes) -> None:
        """Let the third worker send a control message to a rank."""
        say(self.third[rank], text)

    def die(self) -> None:
        for end in self.third:
            end.close()

    def gather(self, data: list[bytes]) -> list[Any]:
        """Gather in both engines at a time."""

        def one(rank: int) -> Any:
            self.engines[rank].publish(data[rank])
            return self.engines[rank].gather(LIMIT_S)[0]

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    def stop(self) -> list[bool]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda e: e.stop(LIMIT_S), self.engines))


@pytest.fixture
def trio() -> Any:
    made = Trio()
    yield made
    made.die()
    for engine in made.engines:
        engine.fail("the test is over")
        engine.stop(0.1)


def survive(trio: Trio, least: int = 1) -> None:
    for engine in trio.engines:
        engine.survive(least)


@pytest.mark.parametrize("told", [[], [0], [1], [0, 1]])
def test_all_who_are_left_gather_the_same(trio: Trio, told: list[int]) -> None:
    survive(trio)
    for rank in told:
        trio.say(rank, b"Bthird")
    trio.die()
    begin = time.monotonic()
    want = [b"a", b"b", b"third" if told else None]
    assert trio.gather([b"a", b"b"]) == [want, want]
    assert trio.gather([b"c", b"d"]) == [[b"c", b"d", None]] * 2
    for engine in trio.engines:
        (worker, when), *others = engine.lost().items()
        assert worker == 2
        assert begin - 1.0 < when < time.monotonic()
        assert not others
        assert engine.departed == []
    assert trio.stop() == [True, True]  # nobody waits for its goodbye


def test_what_it_told_one_who_had_gathered_is_told_to_the_other(trio: Trio) -> None:
    survive(trio)
    trio.say(0, b"Bthird")
    trio.engines[0].publish(b"a")
    trio.engines[1].publish(b"b")
    assert trio.engines[0].gather(LIMIT_S)[0] == [b"a", b"b", b"third"]
    assert trio.engines[1].gather(0.05) == (None, [2])
    trio.die()
    assert trio.engines[1].gather(LIMIT_S)[0] == [b"a", b"b", b"third"]


def test_half_a_message_is_forgotten(trio: Trio) -> None:
    survive(trio)
    trio.third[0].sendall(
        b"cgm1" + bytes([3, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0]) + b"B"
    )
    trio.third[1].sendall(b"cgm")
    trio.die()
    assert trio.gather([b"a", b"b"]) == [[b"a", b"b", None]] * 2
    assert trio.stop() == [True, True]
    assert all(engine.stats().in_flight == 0 for engine in trio.engines)


def test_an_accused_that_lives_ends_with_an_error(trio: Trio) -> None:
    survive(trio)
    trio.say(0, b"V1 \n")  # the third one has lost worker 1, and says so to worker 0
    with pytest.raises(WorkerError, match="has lost worker 1"):
        trio.engines[1].gather(LIMIT_S)
    assert list(trio.engines[0].lost()) == [1]
    assert not trio.engines[0].failed


def test_the_end_does_not_wait_for_one_that_another_has_lost() -> None:
    """It stands still, and what was sent to it before is not taken."""
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [-1, *(ours.detach() for ours, _ in pairs)]
    still, other = (theirs for _, theirs in pairs)
    engine = _engine.Engine.over_sockets(0, fds)
    engine.survive(1)
    engine.publish(bytes(32 << 20))
    for text in (b"V1 \n", b"G"):
        say(other, text)
    other.sendall(b"cge1" + bytes(12))
    begin = time.monotonic()
    assert engine.stop(LIMIT_S)
    assert time.monotonic() - begin < 0.5 * LIMIT_S
    assert list(engine.lost()) == [1]
    still.settimeout(LIMIT_S)
    while still.recv(1 << 20):  # it learns that nobody listens any more
        pass
    for end in (still, other):
        end.close()


def test_too_few_are_left(trio: Trio) -> None:
    survive(trio, least=3)
    trio.die()
    for engine in trio.engines:
        engine.publish(b"")
        with pytest.raises(
            WorkerError,
            match=r"worker 2 is gone.* 2 worker\(s\) would be left, and min_workers",
        ):
            engine.gather(LIMIT_S)


def test_before_a_training_all_are_needed(trio: Trio) -> None:
    trio.die()
    for engine in trio.engines:
        engine.publish(b"")
        with pytest.raises(WorkerError, match=r"worker 2 is gone.*cannot go on"):
            engine.gather(LIMIT_S)


def test_a_session_that_needs_all_ends_the_job(trio: Trio) -> None:
    survive(trio)
    tree = codes.spread(3).tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    settings = {"plan": plan, "bucket_starts": [0, 64]}
    open_ = [
        _engine.Exchange(e, _engine.SessionSettings(**settings, needs_all="of a test"))
        for e in trio.engines
    ]
    trio.die()
    with pytest.raises(WorkerError, match=r"worker 2 is gone.*: of a test"):
        trio.gather([b"", b""])
    del open_
    with pytest.raises(ValueError, match="without deputies all workers are needed"):
        _engine.Exchange(
            trio.engines[0], _engine.SessionSettings(**settings, needs_all="")
        )


class Dying(deputies.Ghost):
    """The last rank, over sockets: it sends what it is told to, then it dies."""

    def __init__(self, fds: list[int], code: codes.Code) -> None:
        self.sockets = [socket.socket(fileno=os.dup(fd)) for fd in fds if fd >= 0]
        self.rank, self.code, self.memory = len(fds) - 1, code, []
        self.transport = _engine.sockets_transport(self.rank, fds)

    def die(self) -> None:
        for end in self.sockets:
            end.shutdown(socket.SHUT_RDWR)
            end.close()


SENDS = [
    deputies.nothing,
    deputies.rows_and_no_result,
    deputies.a_row_to_one,
    deputies.half_a_row,
    deputies.a_result_to_one,
    deputies.a_result_in_part,
    deputies.all_twice,
]
CASES = [(workers, sends) for workers in (3, 4) for sends in SENDS]
CASES += [(2, sends) for sends in SENDS[:2]]  # there is one to send to


@pytest.mark.parametrize("late_s", [0.0, 0.05], ids=["at the begin", "later"])
@pytest.mark.parametrize(("workers", "sends"), CASES)
def test_the_others_train_on_whatever_was_sent(
    workers: int, sends: Any, late_s: float
) -> None:
    """Far beyond the window, with the true sums."""
    code = codes.spread(workers, micro=2)
    fds = [[-1] * workers for _ in range(workers)]
    for a, b in combinations(range(workers), 2):
        fds[a][b], fds[b][a] = (end.detach() for end in socket.socketpair())
    engines = [_engine.Engine.over_sockets(r, fds[r]) for r in range(workers - 1)]
    ghost = Dying(fds[-1], code)
    for engine in engines:
        engine.survive(1)
    living = [deputies.Worker(e, code, 0.005, 4, needs_all="") for e in engines]
    sends([ghost])
    threading.Timer(late_s, ghost.die).start()

    def body(worker: deputies.Worker) -> bool:
        for step in range(15):
            worker.step(step)
        return bool(worker.engine.stop(LIMIT_S))

    with ThreadPoolExecutor(len(living)) as pool:
        assert all(pool.map(body, living, timeout=2 * LIMIT_S))
