"""Messages between the workers of a predictor, over a transport of its own.

Whoever has a message sends it. One thread hears what comes, and calls back at the times
that others wait for. Nothing here waits for another worker: a message to one that is
stopped stays in the memory of this one, and its sender sees to it that these are few.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    pass

log = logging.getLogger("codedgrad")

_SHORTEST_NAP_S, _LONGEST_NAP_S = 1e-4, 1e-3
_GONE = re.compile(r"worker (\d+) is gone")  # as transports say it


class Hearer(Protocol):
    """Whoever a `Post` works for."""

    def hear(self, source: int, kind: int, data: bytes) -> None:
        """Called with each message, in the post's thread."""

    def lost(self, worker: int, text: str) -> None:
        """Called once for a worker that has gone."""

    def look(self) -> bool:
        """Called once and again; returns whether something is waited for."""


class Post:
    """Sends at once, and hears in a thread of its own.

    Args:
        transport: a `_engine.Transport` that nobody else uses.
        hearer: is called with what comes.
    """

    def __init__(self, transport: Any, hearer: Hearer) -> None:
        self._transport, self._hearer = transport, hearer
        self._lock = threading.Lock()  # one thread at a time calls a transport
        self._ids = 0
        self._sends: dict[int, bytes] = {}
        self._receives: dict[int, tuple[int, int, bytearray]] = {}
        self._here: set[int] = set()  # of the receives, those that are complete
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="codedgrad-post", daemon=True
        )
        self.failure = ""

    def start(self) -> None:
        """Begin to hear."""
        self._thread.start()

    def send(self, dest: int, kind: int, data: bytes) -> None:
        """Send a message; it is on its way when this returns."""
        with self._lock:
            if self._stop.is_set():
                return
            self._ids += 1
            try:
                self._transport.send(dest, kind, data, self._ids)
            except RuntimeError as error:  # nothing has been sent
                log.warning("a message of %d bytes: %s", len(data), error)
                return
            self._sends[self._ids] = data

    @property
    def pending(self) -> int:
        """How many messages are under way."""
        return len(self._sends) + len(self._receives)

    def stop(self, timeout_s: float) -> bool:
        """End the thread; returns whether nothing is under way any more."""
        until = time.monotonic() + timeout_s
        while self.pending and not self.failure and time.monotonic() < until:
            time.sleep(_LONGEST_NAP_S)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self.pending

    def _run(self) -> None:
        nap_s = _LONGEST_NAP_S
        try:
            while not self._stop.is_set():
                came = self._turn()
                busy = self._hearer.look()
                nap_s = _SHORTEST_NAP_S if came or busy else 2 * nap_s
                nap_s = min(nap_s, _LONGEST_NAP_S)
                self._stop.wait(nap_s)
        except BaseException as error:  # the worker answers its own queries alone
            self.failure = f"{type(error).__name__}: {error}"
            log.exception("no help is given or taken any more")

    def _turn(self) -> bool:
        """Hand over what has come; returns whether anything has."""
        with self._lock:
            gone = self._take_all()
            for number in self._transport.poll():
                if self._sends.pop(number, None) is None:
                    self._here.add(number)
            complete = self._in_order()
        if gone is not None:
            self._hearer.lost(*gone)
        for source, kind, data in complete:
            try:
                self._hearer.hear(source, kind, bytes(data))
            except Exception:  # as if it had not come
                log.exception("a message of worker %d is dropped", source)
        return bool(complete)

    def _in_order(self) -> list[tuple[int, int, bytearray]]:
        """Return what is here, but of each worker only what follows nothing missing."""
        complete, behind = [], set()
        for number, one in list(self._receives.items()):
            if number in self._here and one[0] not in behind:
                self._here.discard(number)
                complete.append(self._receives.pop(number))
            else:
                behind.add(one[0])
        return complete

    def _take_all(self) -> tuple[int, str] | None:
        """Begin to receive all that is announced; returns a worker that has gone."""
        try:
            while (announced := self._transport.probe()) is not None:
                source, kind, size = announced
                into = bytearray(size)
                self._ids += 1
                self._receives[self._ids] = source, kind, into
                self._transport.receive(memoryview(into), self._ids)
        except RuntimeError as error:
            found = _GONE.match(str(error))
            if found is None:
                raise
            worker = int(found[1])
            # What it was sending is forgotten by the transport.
            self._receives = {
                n: one for n, one in self._receives.items() if one[0] != worker
            }
            return worker, str(error)
        return None
