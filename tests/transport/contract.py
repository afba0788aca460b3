"""What every transport must do (csrc/transport/transport.h), for any number of ranks.

Each case is one function, called on every rank at the same time, with that rank's
`Peer`. `test_contract.py` runs all of them over every transport in transports.py.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transport.folded import folded

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0
GIB = 1 << 30
MOST_TAG = (1 << 31) - 1
SIZES = (0, 1, 3, 4095, 4096, 4097, 65_536, (1 << 20) + 1)
IDS = (1 << 63) + 1  # ids are the caller's: any 64 bits


@dataclass
class Message:
    """One that was announced here, and where it was received."""

    source: int
    tag: int
    data: np.ndarray


@dataclass
class Peer:
    """One rank of a transport, with the bookkeeping that the contract asks for."""

    transport: Any
    meet: Callable[[], None]  # a barrier that does not use the transport
    inbox: list[Message] = field(default_factory=list)  # in the order of announcement
    open: dict[int, Any] = field(default_factory=dict)  # memory in use, by id
    ids: Any = field(default_factory=lambda: itertools.count(IDS))

    def __post_init__(self) -> None:
        self.rank, self.size = self.transport.rank, self.transport.size
        self.next = (self.rank + 1) % self.size
        self.previous = (self.rank - 1) % self.size

    def send(self, dest: int, tag: int, data: np.ndarray) -> int:
        number = next(self.ids)
        self.transport.send(dest, tag, data, number)
        self.open[number] = data
        assert self.transport.pending() == len(self.open)
        return number

    def take(self) -> bool:
        """Receives one message if one is announced."""
        announced = self.transport.probe()
        if announced is None:
            return False
        source, tag, size = announced
        into = folded(size) if size > GIB else np.full(size, 0xEE, np.uint8)
        number = next(self.ids)
        self.inbox.append(Message(source, tag, into))
        self.transport.receive(into, number)
        self.open[number] = into
        assert self.transport.pending() == len(self.open)
        return True

    def poll(self) -> list[int]:
        """Returns the ids that are done now; each must be open, and only once."""
        done = self.transport.poll()
        for number in done:
            del self.open[number]
        assert self.transport.pending() == len(self.open)
        return list(done)

    def until(self, condition: Callable[[], bool], *, takes: bool = True) -> None:
        """Takes and polls until the condition holds."""
        end = time.monotonic() + LIMIT_S
        while not condition():
            busy = takes and self.take()
            busy = bool(self.poll()) or busy
            assert time.monotonic() < end, f"rank {self.rank} waited too long"
            if not busy:
                time.sleep(1e-4)

    def finish(self, messages: int) -> list[Message]:
        """Takes so many messages, waits until all is done; returns the messages."""
        self.until(lambda: len(self.inbox) >= messages and not self.open)
        self.meet()  # nothing more can be under way
        assert self.transport.probe() is None
        assert self.transport.poll() == []
        assert len(self.inbox) == messages
        self.meet()  # before anybody sends more
        found, self.inbox = self.inbox, []
        return found


def pattern(source: int, number: int, size: int) -> np.ndarray:
    """Bytes that tell who sent them, as which of their messages."""
    start = np.uint32(source * 31 + number * 7)
    return ((np.arange(size, dtype=np.uint32) + start) % 251).astype(np.uint8)


# ---- the cases ----


def ranks_and_tags(peer: Peer) -> None:
    """Ranks are 0 .. size - 1; the smallest and the largest tag arrive as they were."""
    largest = peer.transport.max_tag
    assert largest >= (1 << 15) - 1
    data = np.array([peer.rank], np.uint8)
    tags = (0, 1, largest - 1, largest)
    for dest in range(peer.size):
        for tag in tags:
            peer.send(dest, tag, data)
    found = peer.finish(peer.size * len(tags))
    for source in range(peer.size):
        mine = [m for m in found if m.source == source]
        assert [m.tag for m in mine] == list(tags)
        assert all(m.data.tolist() == [source] for m in mine)


def sizes(peer: Peer) -> None:
    """Messages of 0 bytes and more arrive whole."""
    for number, size in enumerate(SIZES):
        peer.send(peer.next, number, pattern(peer.rank, number, size))
    for message in peer.finish(len(SIZES)):
        want = pattern(peer.previous, message.tag, SIZES[message.tag])
        assert np.array_equal(message.data, want)


def order(peer: Peer) -> None:
    """Of one pair, messages are announced in the order of sending, whatever their size.

    A large one that is still being received does not let later ones pass it.
    """
    rounds = [(7, 200_000, 0, 60_000, 12)[i % 5] for i in range(50)]
    for number, size in enumerate(rounds):
        for dest in range(peer.size):
            # The tags come in another order than the messages.
            peer.send(dest, (number * 37) % 101, pattern(peer.rank, number, size))
        if number % 3 == 0:
            peer.take()
    found = peer.finish(len(rounds) * peer.size)
    for source in range(peer.size):
        mine = [m for m in found if m.source == source]
        assert [m.tag for m in mine] == [(i * 37) % 101 for i in range(len(rounds))]
        for number, message in enumerate(mine):
            want = pattern(source, number, rounds[number])
            assert np.array_equal(message.data, want), (source, number)


def many_in_flight(peer: Peer) -> None:
    """Thousands of sends may be started before anybody looks."""
    count = 2000
    data = [pattern(peer.rank, number, 64) for number in range(count)]
    for number in range(count):
        peer.send(peer.next, number, data[number])
    assert peer.transport.pending() == count
    for number, message in enumerate(peer.finish(count)):
        assert message.tag == number
        assert np.array_equal(message.data, pattern(peer.previous, number, 64))


def unexpected(peer: Peer) -> None:
    """A send does not wait for a receiver that does not look; nothing is lost."""
    large = (1 << 20) + 5
    begin = time.monotonic()
    for number in range(8):
        size = large if number % 2 else 10
        peer.send(peer.next, number, pattern(peer.rank, number, size))
    for _ in range(20):
        peer.poll()
    assert time.monotonic() - begin < LIMIT_S / 2
    peer.meet()  # all have sent, nobody has looked
    for number, message in enumerate(peer.finish(8)):
        want = pattern(peer.previous, number, large if number % 2 else 10)
        assert message.tag == number
        assert np.array_equal(message.data, want)


def memory_is_free_when_reported(peer: Peer) -> None:
    """Once poll() has reported a send, its memory may be written again."""
    for size in (100, 300_000):
        data = pattern(peer.rank, size, size)
        number = peer.send(peer.next, 5, data)
        peer.until(lambda number=number: number not in peer.open)
        data[:] = 0xAA
        (message,) = peer.finish(1)
        assert np.array_equal(message.data, pattern(peer.previous, size, size))


def bookkeeping(peer: Peer) -> None:
    """Nothing is there at first; pending() counts what is not reported yet."""
    peer.meet()
    assert peer.transport.probe() is None
    assert peer.transport.poll() == []
    assert peer.transport.pending() == 0
    peer.meet()
    sent = [peer.send(peer.next, 0, pattern(peer.rank, i, 50_000)) for i in range(3)]
    assert sent == [IDS, IDS + 1, IDS + 2]
    peer.until(lambda: len(peer.inbox) == 3)  # `poll` and `send` compare the counts
    assert len(peer.finish(3)) == 3
    assert peer.transport.pending() == 0


def nothing_blocks(peer: Peer) -> None:
    """No call waits for the others: not when all is silent, not when a send is stuck.

    The transport has no time-outs of its own; who waits for a message looks again.
    """
    data = pattern(peer.rank, 0, (1 << 20) + 5)
    peer.meet()
    begin = time.monotonic()
    for _ in range(200):
        assert peer.transport.probe() is None
        assert peer.poll() == []
    silent_s = time.monotonic() - begin
    peer.meet()
    begin = time.monotonic()
    peer.send(peer.next, 1, data)  # nobody takes it yet
    for _ in range(200):
        peer.poll()
    assert silent_s + time.monotonic() - begin < LIMIT_S / 2
    peer.meet()
    (message,) = peer.finish(1)
    assert np.array_equal(message.data, pattern(peer.previous, 0, (1 << 20) + 5))


def failures(peer: Peer) -> None:
    """What cannot be sent is refused at once, with words, and harms nothing else."""
    data = pattern(peer.rank, 1, 5000)
    peer.send(peer.next, 2, data)
    for dest, tag in (
        (peer.size, 0),
        (-1, 0),
        (peer.next, -5),
        (peer.next, peer.transport.max_tag + 1),
    ):
        if tag > MOST_TAG:  # no number of 32 bits is too large for it
            continue
        with pytest.raises(RuntimeError, match=r"\w+"):
            peer.transport.send(dest, tag, data, next(peer.ids))
        assert peer.transport.pending() == len(peer.open)
    peer.send(peer.next, 3, data)
    found = peer.finish(2)
    assert [m.tag for m in found] == [2, 3]
    want = pattern(peer.previous, 1, 5000)
    assert all(np.array_equal(m.data, want) for m in found)


def beyond_two_gib(peer: Peer) -> None:
    """2 GiB - 1 bytes arrive. More arrive, too, or send() refuses them in its words.

    Rank 0 sends to the last rank.
    """
    receives = peer.rank == peer.size - 1
    for size in (2 * GIB - 1, 2 * GIB + 5):
        if peer.rank == 0:
            data = folded(size)
            data[:5], data[-5:] = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
            sent = send_or_refuse(peer, peer.size - 1, data)
            # This small message says whether the large one comes.
            peer.send(peer.size - 1, 8, np.array([sent], np.uint8))
        if not receives:
            peer.finish(0)
            continue
        peer.until(lambda: any(m.tag == 8 for m in peer.inbox) and not peer.open)
        sent = bool(peer.inbox[-1].data[0])
        found = peer.finish(1 + sent)
        if sent:
            assert (found[0].tag, len(found[0].data)) == (9, size)
            assert found[0].data[:6].tolist() == [1, 2, 3, 4, 5, 0]
            assert found[0].data[-6:].tolist() == [0, 6, 7, 8, 9, 10]


def send_or_refuse(peer: Peer, dest: int, data: np.ndarray) -> bool:
    """Returns False when send() refuses a message of 2 GiB or more, and says so."""
    try:
        peer.send(dest, 9, data)
    except RuntimeError as error:
        if len(data) < 2 * GIB or "2 GiB" not in str(error):
            raise
        assert peer.transport.pending() == 0  # as if send() had not been called
        return False
    return True


CASES = {
    case.__name__: case
    for case in (
        bookkeeping,
        ranks_and_tags,
        sizes,
        order,
        many_in_flight,
        unexpected,
        memory_is_free_when_reported,
        nothing_blocks,
        failures,
        beyond_two_gib,
    )
}
