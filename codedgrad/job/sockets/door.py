"""Where a worker listens, and the thread that answers there.

It costs nothing while nobody calls. Who does not prove within seconds that it has the
job's token is refused; the first refusal of each kind is logged. What a caller can make
the door hold is a few hundred bytes for each of at most `_MOST_CALLERS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING

from codedgrad.job.sockets import proof

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("codedgrad")

_PROVE_S = 5.0  # for the whole of what a caller has to say
_MOST_CALLERS = 64  # that have not proved themselves


class _Caller:
    """One connection that has not proved itself."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.until = time.monotonic() + _PROVE_S
        self.heard = b""
        self.greeting: proof.Greeting | None = None
        self.random = secrets.token_bytes(proof.RANDOM_BYTES)

    def hear(self, wanted: int) -> bytes | None:
        """Return `wanted` bytes once they are there; raise ValueError at the end."""
        try:
            data = self.connection.recv(wanted - len(self.heard))
        except BlockingIOError:
            return None
        if not data:
            raise ValueError("it hung up before it had proved itself")
        self.heard += data
        if len(self.heard) < wanted:
            return None
        whole, self.heard = self.heard, b""
        return whole


class Door:
    """Answers callers in a thread of its own.

    Args:
        rank: of this worker in the job.
        token: the job's secret.
        listening: the sockets at which callers come; the door closes them.
        name: who it is, for the log; "worker 3" by default.
    """

    def __init__(
        self,
        rank: int,
        token: bytes,
        listening: Sequence[socket.socket],
        name: str = "",
    ) -> None:
        self._rank, self._token = rank, token
        self._name = name or f"worker {rank}"
        self._listening = list(listening)
        self._callers: dict[int, _Caller] = {}
        self._waiting: dict[tuple[bytes, int], socket.socket] = {}
        self._taken: set[tuple[bytes, int]] = set()
        self._refusals: dict[str, int] = {}
        self._changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        self._closed = False
        for one in (*self._listening, self._bell):
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
        _doors.add(self)
        self._thread = threading.Thread(
            target=self._run, name="codedgrad-door", daemon=True
        )
        self._thread.start()

    def take(self, mesh: str, rank: int, timeout_s: float) -> socket.socket | None:
        """Return the connection of that worker for that mesh; None if none has come."""
        key = (proof.digest(mesh), rank)
        with self._changed:
            self._changed.wait_for(lambda: key in self._waiting, timeout_s)
            return self._waiting.pop(key, None)

    @property
    def refusals(self) -> dict[str, int]:
        """How many callers were refused, by the reason."""
        return dict(self._refusals)

    def close(self) -> None:
        """Answer nobody any more; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._ring.send(b"x")
        self._thread.join(_PROVE_S)
        self.let_go()

    def let_go(self) -> None:
        """Close all that the door holds, also in a child of this process."""
        connections = [c.connection for c in self._callers.values()]
        for one in (*self._listening, *connections, *self._waiting.values()):
            one.close()
        self._bell.close()
        self._ring.close()
        self._selector.close()

    # ---- in the thread ----

    def _run(self) -> None:
        while not self._closed:
            ends = [c.until for c in self._callers.values()]
            timeout_s = max(0.0, min(ends) - time.monotonic()) if ends else None
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj in self._listening:
                    self._open(key.fileobj)
                elif key.fd in self._callers:
                    self._listen_to(self._callers[key.fd])
            now = time.monotonic()
            for caller in [c for c in self._callers.values() if c.until <= now]:
                self._refuse(caller, f"it took longer than {_PROVE_S:.0f} s")

    def _open(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError:  # it has hung up, or this process has no file left
            time.sleep(1e-3)
            return
        if len(self._callers) >= _MOST_CALLERS:
            oldest = min(self._callers.values(), key=lambda c: c.until)
            self._refuse(oldest, "too many called at a time")
        connection.setblocking(False)
        self._callers[connection.fileno()] = _Caller(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _listen_to(self, caller: _Caller) -> None:
        try:
            if caller.greeting is None:
                said = caller.hear(proof.GREETING_BYTES)
                if said is not None:
                    self._answer(caller, said)
            else:
                said = caller.hear(proof.PROOF_BYTES)
                if said is not None:
                    self._let_in(caller, said)
        except (ValueError, OSError) as error:
            self._refuse(caller, str(error))

    def _answer(self, caller: _Caller, said: bytes) -> None:
        greeting = proof.read_greeting(said)
        if greeting.door != self._rank:
            raise ValueError("it wanted another worker")
        caller.greeting = greeting
        mine = proof.prove(self._token, "door", said, caller.random)
        caller.connection.sendall(caller.random + mine)

    def _let_in(self, caller: _Caller, said: bytes) -> None:
        greeting = caller.greeting
        assert greeting is not None
        signed = (greeting.encode(), caller.random)
        if not proof.proves(said, self._token, "caller", signed):
            raise ValueError("it does not have this job's token")
        key = (greeting.mesh, greeting.caller)
        if key in self._taken:
            raise ValueError(f"worker {greeting.caller} is connected already")
        caller.connection.sendall(proof.TAKEN)
        self._forget(caller)
        with self._changed:
            self._taken.add(key)
            self._waiting[key] = caller.connection
            self._changed.notify_all()

    def _forget(self, caller: _Caller) -> None:
        self._selector.unregister(caller.connection)
        del self._callers[caller.connection.fileno()]

    def _refuse(self, caller: _Caller, reason: str) -> None:
        self._forget(caller)
        count = self._refusals.get(reason, 0) + 1
        self._refusals[reason] = count  # noted before the caller can hear of it
        caller.connection.close()
        if count == 1:
            log.warning(
                "%s refused a connection: %s. The job goes on; further ones of this "
                "kind are not reported",
                *(self._name, reason),
            )


_doors: weakref.WeakSet[Door] = weakref.WeakSet()


def _in_a_child() -> None:
    for door in list(_doors):
        door.let_go()
    _doors.clear()


os.register_at_fork(after_in_child=_in_a_child)
