"""Collectives over a mesh: each is a few messages, which whoever polls moves on.

The tag of a message is the number of its collective. Since all processes begin the same
ones in the same order, what comes for a collective that has not begun here is received
into memory of its own, and waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_TAGS = 1 << 30
_REASON_S = 2.0  # for the reason of a worker's end to reach the engine


class Mesh:
    """One connection for each pair of processes, and what is under way on them.

    Args:
        transport: a `_engine.Transport` that nobody else uses.
    """

    def __init__(self, transport: Any) -> None:
        self.rank: int = transport.rank
        self.size: int = transport.size
        self._transport = transport
        self._collectives = 0
        self._ids = 0
        # By (collective, source): where a message goes, and whom it is told to; or what
        # has come early.
        self._awaited: dict[tuple[int, int], tuple[NDArray[Any], Callable[[], None]]]
        self._awaited = {}
        self._early: dict[tuple[int, int], NDArray[Any]] = {}
        self._open: dict[int, tuple[object, Callable[[], None]]] = {}  # by id
        self._lost: tuple[str, float] | None = None

    def begin(self) -> int:
        """Return the number of a new collective."""
        self._collectives += 1
        return self._collectives % _TAGS

    def send(
        self, dest: int, number: int, data: NDArray[Any], done: Callable[[], None]
    ) -> None:
        """Begin to send `data`, which stays as it is until `done` is called."""
        self._transport.send(dest, number, data, self._register(data, done))

    def await_from(
        self, source: int, number: int, into: NDArray[Any], done: Callable[[], None]
    ) -> None:
        """Let a message come into `into`; `done` is called when it is there."""
        early = self._early.pop((number, source), None)
        if early is None:
            self._awaited[number, source] = into, done
            return
        _check(early.nbytes, into, source)
        _bytes_of(into)[:] = early
        done()

    def turn(self) -> None:
        """Move on what is under way.

        Raises:
            WorkerError: a worker of the mesh has gone, and nothing says why.
        """
        try:
            while (announced := self._transport.probe()) is not None:
                self._take(*announced)
        except WorkerError:
            raise
        except RuntimeError as error:
            self._lost = self._lost or (str(error), time.monotonic())
        for number in self._transport.poll():
            _, done = self._open.pop(number)
            done()

    def check(self) -> None:
        """Raise the error of a lost worker, for a collective that is not complete.

        It is raised late: the engine knows the reason, and its error is better.

        Raises:
            WorkerError: a worker of the mesh has gone.
        """
        if self._lost is not None and time.monotonic() > self._lost[1] + _REASON_S:
            raise WorkerError(self._lost[0])

    def _take(self, source: int, number: int, size: int) -> None:
        place = self._awaited.pop((number, source), None)
        if place is None:
            early = np.empty(size, np.uint8)

            def keep() -> None:
                waiting = self._awaited.pop((number, source), None)
                self._early[number, source] = early
                if waiting is not None:
                    self.await_from(source, number, *waiting)

            self._transport.receive(early, self._register(early, keep))
            return
        into, done = place
        _check(size, into, source)
        self._transport.receive(into, self._register(into, done))

    def _register(self, memory: object, done: Callable[[], None]) -> int:
        self._ids += 1
        self._open[self._ids] = memory, done
        return self._ids


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _check(size: int, into: NDArray[Any], source: int) -> None:
    if size != into.nbytes:
        raise WorkerError(
            f"worker {source} sent {size} bytes where {into.nbytes} were wanted; run "
            f"the same script with the same arguments on every worker"
        )


class SocketRequest:
    """A collective over a mesh; see `codedgrad.job.channel.Request`.

    The mesh keeps what is under way, and its memory, alive.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._left = 0
        self._number = mesh.begin()

    def test(self) -> bool:
        """Return whether it is complete; this also moves everything forward."""
        if self._left > 0:
            self._mesh.turn()
        if self._left > 0:
            self._mesh.check()
        return self._left == 0

    def broadcast(self, data: NDArray[Any], root: int) -> SocketRequest:
        """Begin a broadcast along a binomial tree."""
        mesh = self._mesh
        place = (mesh.rank - root) % mesh.size  # in the tree; the root's is 0
        below, step = [], 1
        while step < mesh.size and place % (2 * step) == 0:
            if place + step < mesh.size:
                below.append((place + step + root) % mesh.size)
            step *= 2
        self._left = len(below) + (place > 0)

        def pass_on() -> None:
            for dest in reversed(below):
                mesh.send(dest, self._number, data, self._one)

        if place == 0:
            pass_on()
        else:

            def arrived() -> None:
                pass_on()
                self._one()

            above = (place - step + root) % mesh.size
            mesh.await_from(above, self._number, data, arrived)
        return self

    def allgather(self, mine: NDArray[Any], every: NDArray[Any]) -> SocketRequest:
        """Begin to send `mine` to all others, and to collect theirs in `every`."""
        mesh = self._mesh
        parts = _bytes_of(every).reshape(mesh.size, -1)
        parts[mesh.rank] = _bytes_of(np.ascontiguousarray(mine))
        self._left = 2 * (mesh.size - 1)
        for i in range(1, mesh.size):
            other = (mesh.rank + i) % mesh.size
            mesh.await_from(other, self._number, parts[other], self._one)
            mesh.send(other, self._number, parts[mesh.rank], self._one)
        return self

    def _one(self) -> None:
        self._left -= 1
