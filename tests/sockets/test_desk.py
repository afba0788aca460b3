"""Where those who come back ask to be let in, and the lines by which they enter."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from codedgrad.errors import ConfigError, WorkerError
from codedgrad.job import _engine, rejoin
from codedgrad.job.sockets.desk import Asker, Desk
from codedgrad.job.sockets.lines import Lines, to_nobody

if TYPE_CHECKING:
    from pathlib import Path


def test_who_asks_is_answered_once(tmp_path: Path) -> None:
    desk, first, second = Desk(tmp_path), Asker(1, 1, 1), Asker(1, 1, 2)
    assert desk.process(1) is None
    for rank in range(3):
        desk.start(rank, 0)
    assert desk.has_entered(1, 0)
    desk.start(1, 1)
    assert not desk.has_entered(1, 1)
    assert desk.asking() == []
    desk.ask(first, "who I am")
    assert desk.asking() == [first]
    assert desk.asked(first) == "who I am"
    desk.answer(first, "no", by=0)
    desk.answer(first, "no", by=2)
    assert (desk.asking(), desk.answered(first)) == ([], "no")
    desk.ask(second, "who I am")
    desk.start(0, 1)
    desk.ask(Asker(0, 1, 1), "")
    assert desk.asking() == [Asker(0, 1, 1), second]
    desk.start(1, 2)  # its process before has died
    assert desk.asking() == [Asker(0, 1, 1)]
    desk.enter(0, 1)
    assert desk.has_entered(0, 1)


def test_an_answer_says_how_to_enter_or_why_not() -> None:
    entry = rejoin.Entry(
        rank=1,
        process=2,
        attempt=3,
        step=40,
        ranks=[0, 1],
        donor=0,
        link=[1e-4, 1e-3],
        within=60.0,
    )
    assert rejoin.read(entry.encode()) == entry
    with pytest.raises(ConfigError, match="another script"):
        rejoin.read(rejoin.refuse("another script", again=False))
    with pytest.raises(rejoin.NotNow, match="worker 0 was lost"):
        rejoin.read(rejoin.refuse("worker 0 was lost", again=True))


def pair() -> tuple[Lines, Lines]:
    """The lines of workers 0 and 2."""
    one, two = (end.detach() for end in socket.socketpair())
    return Lines([-1, one], [0, 2]), Lines([two, -1], [0, 2])


def test_what_is_said_is_heard() -> None:
    mine, theirs = pair()
    data = bytes(range(256)) * (1 << 14)  # more than the kernel takes
    sender = threading.Thread(target=mine.say, args=(2, data))
    sender.start()
    assert theirs.hear(0) == data
    sender.join()
    theirs.say(0, b"")
    assert mine.hear(2) == b""
    mine.say_yes(2)
    assert theirs.hear_yes(5.0) == [0]
    mine.close()
    theirs.close()


def test_no_wait_is_endless() -> None:
    mine, theirs = pair()
    with pytest.raises(WorkerError, match=r"worker 2 is not .* \(timed out\)"):
        mine.hear(2, 0.01)
    with pytest.raises(WorkerError, match="worker 2 is not"):
        mine.hear_yes(0.01)
    theirs.close()
    with pytest.raises(WorkerError, match="it has hung up"):
        mine.hear(2)
    mine.say_yes(2)  # nobody hears it
    assert mine.hear_yes(5.0) == []
    mine.close()


def test_an_engine_takes_them_over_without_those_who_are_not_there() -> None:
    mine, theirs = pair()
    engines = [
        _engine.Engine.over_sockets_of_some(
            rank, lines.hand_over(rank, 3, [0, 2]), (1 << 31) - 1, 1
        )
        for rank, lines in ((0, mine), (2, theirs))
    ]
    for rank, engine in zip((0, 2), engines, strict=True):
        engine.publish(b"%d" % rank)
    for engine in engines:
        blobs, _ = engine.gather(10.0)
        assert blobs == [b"0", None, b"2"]
        assert list(engine.lost()) == [1]
    stops = [threading.Thread(target=e.stop, args=(10.0,)) for e in engines]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join()
    assert not any(engine.failed for engine in engines)


def test_an_engine_that_talks_to_nobody_ends_at_once() -> None:
    fds, others = to_nobody(1, 3)
    engine = _engine.Engine.over_sockets(1, fds)
    engine.publish(b"")
    assert engine.gather(0.01)[0] is None
    assert not engine.failed
    engine.stop(0.0)
    for other in others:
        other.close()


def test_lines_have_a_limit() -> None:
    mine, theirs = pair()
    mine.limit(time.monotonic() + 0.1)
    with pytest.raises(WorkerError, match="worker 2 is not to be heard"):
        mine.hear(2)
    mine.close()
    theirs.close()
