"""A device made of threads, for the seam of `codedgrad.devices`.

Its memory is the host's, its streams are queues, and a copy is done late. Until then
its destination holds NaN, so whoever reads too early is found out; whoever gives up the
source too early, too, because somebody else writes it.
"""

from __future__ import annotations

import ctypes
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NOT_READY, BROKEN = 600, 700
_CURRENT = "the compute stream"
_LIMIT_S = 30.0


class Event:
    """Done when as often reached as recorded."""

    def __init__(self) -> None:
        self.recorded = self.reached = 0


class LateDevice:
    """`DeviceRuntime` whose copies take up to `late_s`."""

    def __init__(self, late_s: float = 0.002, seed: int = 0, *, pins: bool = True):
        self.late_s, self.pins = late_s, pins
        self.broken = False
        self.pinned: set[int] = set()
        self.set_devices: list[int] = []
        self.copies = 0
        self._random = random.Random(seed)
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._keep: list[Any] = []

    # ---- streams and events ----

    def stream(self) -> Any:
        work: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def run() -> None:
            while True:
                work.get()()

        threading.Thread(target=run, daemon=True).start()
        return work

    def event(self) -> Event:
        self._events.append(Event())
        return self._events[-1]

    def current(self) -> Any:
        return _CURRENT

    def record(self, event: Event, stream: Any) -> None:
        with self._changed:
            event.recorded += 1

        def reach() -> None:
            with self._changed:
                event.reached += 1
                self._changed.notify_all()

        reach() if stream is _CURRENT else stream.put(reach)

    def wait(self, stream: Any, event: Event) -> None:
        until = event.recorded

        def pause() -> None:
            with self._changed:
                assert self._changed.wait_for(
                    lambda: event.reached >= until, _LIMIT_S
                ), "a stream waited for ever"

        pause() if stream is _CURRENT else stream.put(pause)

    def copy(self, out: Tensor, source: Tensor, stream: Any) -> None:
        out.fill_(float("nan"))
        nap = self._random.random() * self.late_s
        self.copies += 1

        def move() -> None:
            time.sleep(nap)
            out.copy_(source)

        stream.put(move)

    def done(self, event: Event) -> bool:
        return event.reached == event.recorded

    def synchronize(self, event: Event) -> None:
        self.wait(_CURRENT, event)

    # ---- what the engine calls ----

    def handle(self, event: Event) -> int:
        return self._events.index(event) + 1

    def engine_calls(self) -> dict[str, int]:
        def set_device(device: int) -> int:
            self.set_devices.append(device)
            return 0

        def pin(place: int, _bytes: int, flags: int) -> int:
            if not self.pins:
                return 2  # out of memory
            assert flags == 1
            assert place not in self.pinned
            self.pinned.add(place)
            return 0

        def unpin(place: int) -> int:
            self.pinned.remove(place)
            return 0

        def query(handle: int) -> int:
            if self.broken:
                return BROKEN
            return 0 if self.done(self._events[handle - 1]) else NOT_READY

        i, p = ctypes.c_int, ctypes.c_void_p
        functions = {
            "set_device": ctypes.CFUNCTYPE(i, i)(set_device),
            "pin": ctypes.CFUNCTYPE(i, p, ctypes.c_size_t, ctypes.c_uint)(pin),
            "unpin": ctypes.CFUNCTYPE(i, p)(unpin),
            "query": ctypes.CFUNCTYPE(i, p)(query),
        }
        self._keep.append(functions)  # as long as the engine may call them
        calls = {
            name: int(ctypes.cast(f, p).value or 0) for name, f in functions.items()
        }
        return calls | {"device": 3, "pin_flags": 1, "not_ready": NOT_READY}
