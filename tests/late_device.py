"""A device made of threads, for the seam of `codedgrad.row.devices`.

Its memory is the host's, its streams are queues, and it does a copy or a sum late.
Until then the destination holds NaN, so whoever reads too early is found out. Whoever
gives up the source too early is found out, too, because somebody else writes it. It
refuses sums of memory that is neither pinned nor its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

NOT_READY, BROKEN, NO_MEMORY = 600, 700, 2
_CURRENT = "the compute stream"
_LIMIT_S = 30.0
# Memory may be freed later than its device, in a garbage collection, and calls these.
_FOR_EVER: list[Any] = []


class Event:
    """An event; it is done when it was reached as often as recorded."""

    def __init__(self) -> None:
        self.recorded = self.reached = 0


class DeviceSum(ctypes.Structure):
    """The struct of csrc/ops/device_sum.h."""

    _fields_ = (
        ("device", ctypes.c_int),
        ("is_double", ctypes.c_int),
        ("program", ctypes.POINTER(ctypes.c_int)),
        ("tokens", ctypes.c_int),
        ("inputs_count", ctypes.c_int),
        ("inputs", ctypes.POINTER(ctypes.c_void_p)),
        ("out", ctypes.c_void_p),
        ("out2", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


class LateDevice:
    """A `DeviceRuntime` whose copies and sums take up to `late_s`.

    `pins`: memory can be pinned. `sums`: it has kernels. `takes`: MPI takes its memory.
    `memory`: the bytes that it has.
    """

    def __init__(
        self,
        late_s: float = 0.002,
        seed: int = 0,
        *,
        pins: bool = True,
        sums: bool = True,
        takes: bool = False,
        memory: float = float("inf"),
    ):
        self.late_s, self.pins = late_s, pins
        self.has_sums, self.takes, self.memory = sums, takes, memory
        self.broken = self.sums_broken = self.answers_broken = False
        self.miscounts = False
        self.pinned: dict[int, int] = {}  # bytes by place
        self.own: dict[int, Any] = {}  # memory by place
        self.sums = self.allocations = 0
        self.selected: set[int] = set()  # threads whose calls are about it
        self.errors: set[int] = set()  # threads whose last call failed
        self._tickets: dict[int, Event] = {}
        self._lane = self.stream()
        self.set_devices: list[int] = []
        self.copies = 0
        self._random = random.Random(seed)
        self._events: list[Event] = []
        self._changed = threading.Condition()

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
        assert threading.get_ident() not in self.errors, "an error that nobody took"
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
        i, p = ctypes.c_int, ctypes.c_void_p
        size_t, places = ctypes.c_size_t, ctypes.POINTER(p)
        sum_of = ctypes.POINTER(DeviceSum)
        functions = {
            "set_device": ctypes.CFUNCTYPE(i, i)(self._set_device),
            "pin": ctypes.CFUNCTYPE(i, p, size_t, ctypes.c_uint)(self._pin),
            "unpin": ctypes.CFUNCTYPE(i, p)(self._unpin),
            "query": ctypes.CFUNCTYPE(i, p)(self._query),
            "allocate": ctypes.CFUNCTYPE(i, places, size_t)(self._allocate),
            "release": ctypes.CFUNCTYPE(i, p)(self._release),
            "take_error": ctypes.CFUNCTYPE(i)(self._take_error),
        }
        if self.has_sums:
            start_sum = ctypes.CFUNCTYPE(i, sum_of, places)(self._start_sum)
            functions["start_sum"] = start_sum
            functions["sum_done"] = ctypes.CFUNCTYPE(i, p)(self._sum_done)
        _FOR_EVER.append(functions)
        calls = {
            name: int(ctypes.cast(f, p).value or 0) for name, f in functions.items()
        }
        calls = {"start_sum": 0, "sum_done": 0} | calls
        return calls | {"device": 3, "pin_flags": 3, "not_ready": NOT_READY}

    def _set_device(self, device: int) -> int:
        self.set_devices.append(device)
        self.selected.add(threading.get_ident())
        return 0

    def _refused(self) -> int:
        self.errors.add(threading.get_ident())
        return NO_MEMORY

    def _take_error(self) -> int:
        self.errors.discard(threading.get_ident())
        return 0

    def _pin(self, place: int, size: int, flags: int) -> int:
        assert threading.get_ident() in self.selected
        if not self.pins:
            return self._refused()
        assert flags == 3
        assert place not in self.pinned
        self.pinned[place] = size
        return 0

    def _unpin(self, place: int) -> int:
        del self.pinned[place]
        return 0

    def _allocate(self, place: Any, size: int) -> int:
        if threading.get_ident() not in self.selected:
            return BROKEN  # the memory would be another device's
        if sum(map(len, self.own.values())) + size > self.memory:
            return self._refused()
        memory = (ctypes.c_char * size).from_buffer(bytearray(b"\xff" * size))
        place[0] = ctypes.addressof(memory)  # NaN all over
        self.own[place[0]] = memory
        self.allocations += 1
        return 0

    def _release(self, place: int) -> int:
        del self.own[place]
        return 0

    def _query(self, handle: int) -> int:
        if self.broken:
            return BROKEN
        return 0 if self.done(self._events[handle - 1]) else NOT_READY

    def _sum_done(self, ticket: int) -> int:
        if not self.done(self._tickets[ticket]):
            return NOT_READY
        del self._tickets[ticket]
        return BROKEN if self.answers_broken else 0

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        before = threading.get_ident() in self.selected
        self.selected.add(threading.get_ident())
        yield
        if not before:
            self.selected.discard(threading.get_ident())

    def direct(self) -> bool:
        return self.takes

    def view(self, buffer: Any, dtype: torch.dtype) -> Tensor:
        memory = (ctypes.c_char * buffer.bytes).from_address(buffer.address)
        memory.keep = buffer
        return torch.frombuffer(memory, dtype=dtype)

    def _vector(self, place: int, count: int, dtype: Any) -> NDArray[Any]:
        """Returns memory as a vector; the device must reach it."""
        size = count * np.dtype(dtype).itemsize
        ranges = self.pinned | {p: len(m) for p, m in self.own.items()}
        assert any(p <= place and place + size <= p + n for p, n in ranges.items()), (
            "the device is to use memory that it does not reach"
        )
        return np.frombuffer((ctypes.c_char * size).from_address(place), dtype)

    def _start_sum(self, asked: Any, ticket: Any) -> int:
        """Starts a sum, as csrc/engine/device.h describes it."""
        if self.broken or self.sums_broken:
            return BROKEN
        this, dtype = asked[0], np.float64 if asked[0].is_double else np.float32
        try:
            inputs = [
                self._vector(this.inputs[i], this.count, dtype)
                for i in range(this.inputs_count)
            ]
            outs = [
                self._vector(place, this.count, dtype)
                for place in (this.out, this.out2)
                if place
            ]
        except AssertionError:
            return BROKEN
        program = this.program[: this.tokens]
        for out in outs:
            out.fill(np.nan)
        nap = self._random.random() * self.late_s

        def work() -> None:
            time.sleep(nap)
            total = _run(program, inputs) + self.miscounts
            for out in outs:
                out[:] = total

        self.sums += 1
        done = self.event()
        self._tickets[self.sums] = done
        ticket[0] = self.sums
        self._lane.put(work)
        self.record(done, self._lane)
        return 0


def _run(program: list[int], inputs: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns the value of a program of csrc/ops/cpu/sums.h."""
    stack: list[NDArray[Any]] = []
    for token in program:
        if token >= 0:
            stack.append(inputs[token])
        else:
            right = stack.pop()
            stack.append(stack.pop() + right)
    return stack[0]
