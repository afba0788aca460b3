"""Connections to the workers of a mesh before an engine takes them over.

What is said on them is a length of 64 bits and so many bytes. Each wait ends.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from typing import TYPE_CHECKING

from codedgrad.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PIECE_BYTES = 1 << 22
_IDLE_S = 20.0  # without a byte
_YES = b"+"


class Lines:
    """A line to each worker of a mesh.

    Args:
        fds: the sockets by rank, -1 for this worker; the lines take them over.
        ranks: the workers of the mesh, in the order of `fds`.
    """

    def __init__(self, fds: Sequence[int], ranks: Sequence[int]) -> None:
        self._lines = {
            rank: socket.socket(fileno=fd)
            for rank, fd in zip(ranks, fds, strict=True)
            if fd >= 0
        }
        self._until = math.inf

    def limit(self, until: float) -> None:
        """Let all that is said and heard end by this `time.monotonic()`."""
        self._until = until

    def say(self, rank: int, data: bytes) -> None:
        """Send bytes to a worker.

        Raises:
            WorkerError: it has gone, or takes nothing any more.
        """
        try:
            for piece in (struct.pack("<Q", len(data)), data):
                left = memoryview(piece)
                while left:
                    self._wait(rank, _IDLE_S)
                    left = left[self._lines[rank].send(left[:_PIECE_BYTES]) :]
        except OSError as error:
            raise _gone(rank, error) from None

    def hear(self, rank: int, wait_s: float = _IDLE_S) -> bytearray:
        """Return the bytes that a worker sends.

        Args:
            rank: the worker.
            wait_s: seconds until it begins.

        Raises:
            WorkerError: it has gone, or says nothing any more.
        """
        try:
            head = self._take(rank, 8, wait_s)
            return self._take(rank, int(struct.unpack("<Q", head)[0]), _IDLE_S)
        except OSError as error:
            raise _gone(rank, error) from None

    def say_yes(self, rank: int) -> None:
        """Say yes to a worker; if it has gone meanwhile it does not hear it."""
        with contextlib.suppress(OSError):
            self._lines[rank].send(_YES)

    def hear_yes(self, wait_s: float) -> list[int]:
        """Wait for the others' yes, and return who has said it; the others have gone.

        Raises:
            WorkerError: one of them says nothing for so long.
        """
        found = []
        for rank, line in self._lines.items():
            line.settimeout(wait_s)
            try:
                if line.recv(1) == _YES:
                    found.append(rank)
            except TimeoutError as error:
                raise _gone(rank, error) from None
            except OSError:
                continue
        return found

    def hand_over(self, me: int, size: int, only: Iterable[int]) -> list[int]:
        """Return sockets by rank for the engine of worker `me` among `size`.

        For who is not in `only` there is one whose other end is closed, as that of a
        worker that has died. The lines are not to be used any more.
        """
        wanted, fds = set(only), list[int]()
        for rank in range(size):
            if rank == me:
                fds.append(-1)
                continue
            line = self._lines.pop(rank, None)
            if line is not None and rank in wanted:
                fds.append(line.detach())
                continue
            if line is not None:
                line.close()
            here, there = socket.socketpair()
            there.close()
            fds.append(here.detach())
        return fds

    def close(self) -> None:
        """End all lines."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _wait(self, rank: int, wait_s: float) -> None:
        """Let the next call on a line wait so long, or until the limit."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it has taken too long in all")
        self._lines[rank].settimeout(min(wait_s, left))

    def _take(self, rank: int, size: int, wait_s: float) -> bytearray:
        heard = bytearray()  # it grows with what comes, whatever was announced
        while len(heard) < size:
            self._wait(rank, wait_s)
            data = self._lines[rank].recv(min(_PIECE_BYTES, size - len(heard)))
            if not data:
                raise ConnectionResetError("it has hung up")
            heard += data
        return heard


def _gone(rank: int, error: OSError) -> WorkerError:
    return WorkerError(f"worker {rank} is not to be heard any more ({error})")


def to_nobody(me: int, size: int) -> tuple[list[int], list[socket.socket]]:
    """Return sockets to workers that say nothing, and what keeps these sockets open."""
    pairs = {rank: socket.socketpair() for rank in range(size) if rank != me}
    fds = [pairs[rank][0].detach() if rank in pairs else -1 for rank in range(size)]
    return fds, [there for _, there in pairs.values()]
