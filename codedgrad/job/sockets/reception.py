"""The meeting of workers of several machines, at the first machine's supervisor.

Who calls has to prove that it has the token before its card is read.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time

from codedgrad.errors import ConfigError, EnvironmentSetupError
from codedgrad.job import addresses
from codedgrad.job.sockets import calling, proof
from codedgrad.job.sockets.card import MOST_BYTES
from codedgrad.job.sockets.door import Door

log = logging.getLogger("codedgrad")

DESK = 0xFFFFFFFF  # stands for the reception where others give a worker's rank
_MESH = "meeting"
_LENGTH = struct.Struct("!I")
_LOOK_S = 0.5
_CARD_S = 10.0  # for a card of at most MOST_BYTES


class Reception:
    """Collects the cards of all workers and gives them to all, in a thread of its own.

    Args:
        host: the address to listen at; one of this machine.
        port: the port.
        size: how many workers there are.
        token: the job's secret.

    Raises:
        ConfigError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, size: int, token: bytes) -> None:
        try:
            listening = addresses.listen(host, port, backlog=size)
        except OSError as error:
            raise ConfigError(
                f"--rendezvous {host}:{port}: this machine, which is the first, cannot "
                f"listen there ({error}); give one of its addresses, and a free port"
            ) from None
        where = str(listening.getsockname()[0])
        if addresses.is_loopback(where) and host not in (where, "localhost"):
            listening.close()
            raise ConfigError(
                f"--rendezvous {host}:{port}: on this machine {host} is {where}, where "
                f"no other machine can call; give one of its addresses"
            )
        self._size = size
        self._door = Door(DESK, token, [listening], "the meeting place")
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name="codedgrad-reception", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Receive nobody any more."""
        self._closed = True
        self._thread.join()
        self._door.close()

    def _run(self) -> None:
        guests: dict[int, socket.socket] = {}
        cards: dict[int, bytes] = {}
        while len(cards) < self._size and not self._closed:
            rank = next(r for r in range(self._size) if r not in cards)
            guest = self._door.take(_MESH, rank, _LOOK_S)
            if guest is None:
                continue
            guests[rank] = guest
            guest.settimeout(_CARD_S)
            try:
                cards[rank] = _read(guest)
            except (OSError, ValueError):
                cards[rank] = b""  # the others will say that it is none
        every = b"".join(_LENGTH.pack(len(c)) + c for _, c in sorted(cards.items()))
        for guest in guests.values():
            with guest, contextlib.suppress(OSError):
                if not self._closed:
                    guest.sendall(every)


class Guest:
    """A worker at the reception; see `meeting.Meeting`.

    Args:
        host: where the reception is.
        port: its port.
        size: how many workers there are.
        token: the job's secret.
        wait_s: how long to wait for a reception that is not open yet.
    """

    def __init__(
        self, host: str, port: int, size: int, *, token: bytes, wait_s: float
    ) -> None:
        self._where, self._size = (host, port), size
        self._token, self._wait_s = token, wait_s
        self._cards: list[bytes] = []
        self._heard = b""

    def leave(self, rank: int, card: bytes) -> None:
        """Call at the reception, and leave the card."""
        said = time.monotonic()
        until = said + self._wait_s

        def line(timeout_s: float) -> socket.socket:
            return socket.create_connection(self._where, timeout_s)

        while True:
            greeting = proof.greet(_MESH, rank, DESK)
            try:
                self._line = calling.call(line, self._token, greeting, until)
                self._line.sendall(_LENGTH.pack(len(card)) + card)
            except OSError as error:
                if time.monotonic() > until:
                    host, port = self._where
                    raise EnvironmentSetupError(
                        f"nobody answers at --rendezvous {host}:{port} ({error}); is "
                        f"the first machine's `codedgrad run` at work?"
                    ) from None
                if time.monotonic() - said > calling.QUIET_S:
                    said = time.monotonic()
                    where = f"{self._where[0]}:{self._where[1]}"
                    log.warning("nobody answers at --rendezvous %s (%s)", where, error)
                time.sleep(_LOOK_S)
            else:
                self._line.settimeout(_LOOK_S)
                return

    def find(self, rank: int) -> bytes | None:
        """Return the card of a worker once all have come."""
        while len(self._cards) < self._size:
            try:
                data = self._line.recv(1 << 16)
            except TimeoutError:
                return None
            if not data:
                raise EnvironmentSetupError(
                    "the first machine's `codedgrad run` has ended before all workers "
                    "had come"
                )
            self._heard += data
            self._cut()
        self._line.close()
        return self._cards[rank]

    def _cut(self) -> None:
        while len(self._heard) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._heard)
            end = _LENGTH.size + size
            if size > MOST_BYTES:
                raise EnvironmentSetupError(f"a card of {size} bytes is none")
            if len(self._heard) < end:
                return
            self._cards.append(self._heard[_LENGTH.size : end])
            self._heard = self._heard[end:]


def _read(guest: socket.socket) -> bytes:
    (size,) = _LENGTH.unpack(calling.hear(guest, _LENGTH.size))
    if size > MOST_BYTES:
        raise ValueError(f"a card of {size} bytes")
    return calling.hear(guest, size)
