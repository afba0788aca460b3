"""What a transport over sockets makes of a peer that ends, dies, or sends garbage.

The peer here is a bare socket. The contract has what all transports do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest
from transport.transports import tcp_pair

from codedgrad.job import _engine

HEAD = struct.Struct("<IiQ")
MESSAGE, END, ADDRESS, TAKEN, TRIAL, READABLE, UNREAD, BYTES = (
    int.from_bytes(name, "little")
    for name in (
        *(b"cgm1", b"cge1", b"cga1", b"cgt1", b"cgy1", b"cgr1", b"cgu1", b"cgb1"),
    )
)
UNREADABLE = 8  # no memory of a process has this address
LIMIT_S = 20.0
LARGE = 1 << 20


class Ends:
    """A transport, rank 0 of 2, and the bare socket of rank 1."""

    def __init__(self, pair: Any) -> None:
        ours, self.bare = pair()
        self.bare.settimeout(LIMIT_S)
        self.transport = _engine.sockets_transport(0, [-1, ours.detach()])

    def say(self, mark: int, tag: int = 0, size: int = 0, data: bytes = b"") -> None:
        self.bare.sendall(HEAD.pack(mark, tag, size) + data)

    def hear(self, mark: int) -> tuple[int, int]:
        """Returns tag and length of the next frame, which has that mark."""
        found, tag, size = HEAD.unpack(self.read(HEAD.size))
        assert found == mark
        return tag, size

    def read(self, size: int) -> bytes:
        """Reads from the bare socket, while the transport goes on."""
        data = b""
        self.bare.settimeout(0.01)
        limit = time.monotonic() + LIMIT_S
        while len(data) < size:
            self.transport.poll()
            assert time.monotonic() < limit
            try:
                data += self.bare.recv(size - len(data))
            except TimeoutError:
                continue
        self.bare.settimeout(LIMIT_S)
        return data

    def probe(self) -> Any:
        """Returns the next message, or raises the transport's error."""
        limit = time.monotonic() + LIMIT_S
        while (found := self.transport.probe()) is None:
            self.transport.poll()
            assert time.monotonic() < limit
        return found

    def done(self, number: int) -> None:
        limit = time.monotonic() + LIMIT_S
        found: list[int] = []
        while number not in found:
            found += self.transport.poll()
            assert time.monotonic() < limit
        assert found == [number]


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["unix", "tcp"])
def ends(request: pytest.FixtureRequest) -> Any:
    made = Ends(request.param)
    yield made
    del made.transport
    made.bare.close()


@pytest.mark.parametrize(
    ("mark", "tag", "size"),
    [
        (0x47455420, 0, 5),  # "GET "
        (MESSAGE, -1, 5),
        (MESSAGE, 3, (2 << 30) + 1),
        (END, 0, 1),
        (TAKEN, 7, 0),
    ],
)
def test_garbage(ends: Ends, mark: int, tag: int, size: int) -> None:
    """It is refused before anybody takes memory for it, and what came before counts."""
    ends.say(MESSAGE, 3, 4, b"good")
    ends.say(mark, tag, size)
    assert ends.probe() == (1, 3, 4)
    into = np.zeros(4, np.uint8)

    def go_on() -> None:
        ends.transport.receive(into, 1)
        ends.probe()

    with pytest.raises(RuntimeError, match=r"worker 1 sent what is no message"):
        go_on()
    assert into.tobytes() == b"good"


def test_a_peer_that_dies_is_gone_once_all_that_it_has_sent_is_heard(
    ends: Ends,
) -> None:
    ends.say(MESSAGE, 3, 4, b"last")
    ends.say(MESSAGE, 4, 100, b"half of it")
    ends.bare.close()
    assert ends.probe() == (1, 3, 4)
    into = np.zeros(4, np.uint8)
    ends.transport.receive(into, 1)
    ends.done(1)
    assert into.tobytes() == b"last"
    assert ends.probe() == (1, 4, 100)
    half = np.zeros(100, np.uint8)
    ends.transport.receive(half, 2)
    with pytest.raises(RuntimeError, match="worker 1 is gone: its process died"):
        ends.probe()
    assert ends.transport.probe() is None  # it is said once
    ends.transport.send(1, 5, into, 3)  # and sends to it are dropped
    ends.done(3)
    assert ends.transport.pending() == 0  # what was never received whole is forgotten


def test_a_peer_that_ends_is_not_gone(ends: Ends) -> None:
    ends.say(MESSAGE, 3, 0)
    ends.say(END)
    ends.bare.close()
    assert ends.probe() == (1, 3, 0)
    ends.transport.receive(np.zeros(0, np.uint8), 1)
    ends.done(1)
    for _ in range(50):
        assert ends.transport.probe() is None
        ends.transport.poll()
    ends.transport.send(1, 5, np.zeros(LARGE, np.uint8), 2)
    ends.done(2)


def test_a_transport_that_ends_says_so(ends: Ends) -> None:
    if ends.bare.family == socket.AF_UNIX:
        ends.hear(TRIAL)
    transport, ends.transport = ends.transport, None
    del transport
    assert HEAD.unpack(ends.bare.recv(HEAD.size)) == (END, 0, 0)
    assert ends.bare.recv(1) == b""


def test_a_large_message_is_read_in_its_senders_memory() -> None:
    """The bare socket's process is this one, so each reads its own memory."""
    ends = Ends(socket.socketpair)
    ends.hear(TRIAL)
    # One that names another number is not answered, and no memory is read.
    own = np.array([77], np.int64)
    ends.say(TRIAL, 78, own.ctypes.data)
    ends.say(TRIAL, 77, own.ctypes.data)
    ends.hear(READABLE)
    ends.bare.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.bare.recv(1)
    # A message comes:
    data = np.frombuffer(os.urandom(LARGE), np.uint8)
    ends.say(ADDRESS, 9, LARGE, struct.pack("<Q", data.ctypes.data))
    assert ends.probe() == (1, 9, LARGE)
    into = np.zeros(LARGE, np.uint8)
    ends.transport.receive(into, 1)
    ends.done(1)
    assert (into == data).all()
    ends.hear(TAKEN)
    # And one goes, once it is known that the peer can read it:
    ends.transport.send(1, 4, data, 2)
    assert ends.hear(MESSAGE) == (4, LARGE)
    assert ends.read(LARGE) == data.tobytes()
    ends.done(2) if ends.transport.pending() else None
    ends.say(READABLE)
    for _ in range(20):
        ends.transport.poll()
    ends.transport.send(1, 5, data, 3)
    assert ends.hear(ADDRESS) == (5, LARGE)
    assert struct.unpack("<Q", ends.read(8)) == (data.ctypes.data,)
    assert ends.transport.poll() == []  # it belongs to the transport until it is read
    ends.say(TAKEN)
    ends.done(3)
    ends.bare.close()


def test_memory_of_a_peer_that_has_hung_up_is_no_message() -> None:
    ends = Ends(socket.socketpair)
    data = np.ones(LARGE, np.uint8)
    ends.say(ADDRESS, 9, LARGE, struct.pack("<Q", data.ctypes.data))
    ends.bare.close()
    assert ends.probe() == (1, 9, LARGE)
    ends.transport.receive(np.zeros(LARGE, np.uint8), 1)
    with pytest.raises(RuntimeError, match="worker 1 is gone"):
        ends.probe()
    assert ends.transport.pending() == 0


def test_memory_that_cannot_be_read_any_more_is_sent() -> None:
    """The peer lives: it is asked for the bytes, and what it sent since is heard."""
    ends = Ends(socket.socketpair)
    ends.hear(TRIAL)
    for tag, size in ((9, LARGE), (10, 300_000)):
        ends.say(ADDRESS, tag, size, struct.pack("<Q", UNREADABLE))
    ends.say(MESSAGE, 11, 4, b"next")
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, 256, n, np.uint8) for n in (LARGE, 300_000)]
    into = [np.zeros(len(data), np.uint8) for data in sent]
    for number in range(2):
        assert ends.probe() == (1, 9 + number, len(into[number]))
        ends.transport.receive(into[number], number)
        ends.hear(UNREAD)
    assert ends.probe() == (1, 11, 4)
    ends.transport.receive(np.zeros(4, np.uint8), 2)
    ends.done(2)
    assert ends.transport.pending() == 2
    ends.bare.setblocking(False)
    frames = b"".join(
        HEAD.pack(BYTES, 9 + n, len(data)) + data.tobytes()
        for n, data in enumerate(sent)
    )
    frames += HEAD.pack(MESSAGE, 12, 0)
    found: list[int] = []
    limit = time.monotonic() + LIMIT_S
    while frames or len(found) < 2:
        assert time.monotonic() < limit
        with contextlib.suppress(BlockingIOError):
            frames = frames[ends.bare.send(frames) :]
        found += ends.transport.poll()
    assert found == [0, 1]
    assert all((a == b).all() for a, b in zip(sent, into, strict=True))
    assert ends.probe() == (1, 12, 0)
    ends.transport.receive(np.zeros(0, np.uint8), 3)
    ends.done(3)
    ends.bare.close()


def test_a_peer_that_cannot_read_gets_the_bytes() -> None:
    ends = Ends(socket.socketpair)
    ends.hear(TRIAL)
    ends.say(READABLE)
    for _ in range(20):
        ends.transport.poll()
    data = np.frombuffer(os.urandom(LARGE), np.uint8)
    ends.transport.send(1, 5, data, 3)
    assert ends.hear(ADDRESS) == (5, LARGE)
    ends.read(8)
    ends.say(UNREAD)
    assert ends.hear(BYTES) == (5, LARGE)
    assert ends.read(LARGE) == data.tobytes()
    ends.done(3) if ends.transport.pending() else None
    ends.transport.send(1, 6, data, 4)  # and no address any more
    assert ends.hear(MESSAGE) == (6, LARGE)
    ends.bare.close()


def test_bytes_that_nobody_has_asked_for(ends: Ends) -> None:
    ends.say(BYTES, 3, 4, b"four")
    with pytest.raises(RuntimeError, match="worker 1 sent the 4 bytes of a message"):
        ends.probe()


def test_a_peer_that_is_gone_learns_it(ends: Ends) -> None:
    """It lives, and has ended its side alone: it hears that nobody listens."""
    ends.bare.shutdown(socket.SHUT_WR)
    with pytest.raises(RuntimeError, match="worker 1 is gone"):
        ends.probe()
    while ends.bare.recv(HEAD.size):  # the trial
        pass


@pytest.mark.parametrize("reads", [True, False])
def test_a_peer_that_is_dropped(ends: Ends, reads: bool) -> None:
    """It still gets what it takes; the rest is reported as done, and it is gone."""
    if ends.bare.family == socket.AF_UNIX:
        ends.hear(TRIAL)
    data = np.frombuffer(os.urandom(64 * LARGE), np.uint8)
    ends.transport.send(1, 5, data, 1)
    ends.transport.drop(1)
    if reads:
        assert ends.hear(MESSAGE) == (5, len(data))
        assert ends.read(len(data)) == data.tobytes()
    begin = time.monotonic()
    ends.done(1) if ends.transport.pending() else None
    with pytest.raises(RuntimeError, match="worker 1 is gone"):
        ends.probe()
    assert ends.transport.pending() == 0
    assert time.monotonic() - begin < 5.0
    while ends.bare.recv(LARGE):
        pass
