"""Rows travel from a device to the engine, and sums back, without stopping the device.

    compute stream   ...backward| encode b |...              | wait E2 |  p.grad
                                     | E0                        ^
    copy-out stream             wait E0 | row_b -> engine | E1   |
    engine (host)                       asks for E1, then sends bucket b, decodes it
    sum stream                                  rows -> sum of b | E3, asked for
    copy-in stream                               sum of all -> torch's memory | E2

Each stream buys one overlap: copies out run beside the rest of the backward, and copies
in beside whatever the device computes until it needs the sum. The sum stream is the
engine's (csrc/ops/cuda/tree_sum.cu); where the processor decodes there is none.

The engine's memory is memory that MPI takes (see `rows_memory`): pinned memory of the
host or, with a CUDA-aware MPI, memory of the device. Either way the engine has a copy
of its own, because torch's memory is ordered by torch's streams alone.

The engine reads a row's bucket only after E1 is done. Its own thread asks for that
(`cudaEventQuery`), so neither Python nor the device waits. Whatever uses the sum on the
device comes after E2 in the compute stream. Nothing synchronises the whole device.

`Staging` holds both ends of a copy until the copy's event is done. Where a model is
dropped with copies under way, the process holds them on, until a later `Staging` finds
them done. One event that is recorded again stands for a later copy, so an engine that
still asks for the earlier copy waits a little too long, but never too short.

The events belong to the process, which never destroys them: the engine may ask for one
at any time, also when its model is gone. A `Staging` borrows them, and the next one on
the same device takes over those of one that is gone.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.row.devices.base import DeviceRuntime

    # Events in the order in which they are recorded, with what they protect.
    Held = deque[tuple[Any, tuple[Tensor, ...]]]

# Copies that can be under way before an event is used for a second one.
_EVENTS = 64


class _Events(NamedTuple):
    """Events that outlive the `Staging` that records them, and what they protect."""

    runtime: DeviceRuntime
    device: torch.device
    out: list[Any]  # E1, in turn
    before: Any  # E0, and the same for sums
    back: Any  # E2
    held: Held


_free: list[_Events] = []  # of those that are gone


def _borrow(runtime: DeviceRuntime, device: torch.device) -> _Events:
    """Returns events that nobody else records, made anew if there are none."""
    for events in _free:
        if events.runtime == runtime and events.device == device:
            _drop_done(runtime, events.held)
            if not events.held:
                _free.remove(events)
                return events
    out = [runtime.event() for _ in range(_EVENTS)]
    back, before = runtime.event(), runtime.event()
    return _Events(runtime, device, out, back, before, held=deque())


def _drop_done(runtime: DeviceRuntime, held: Held) -> None:
    while held and runtime.done(held[0][0]):
        held.popleft()


class Staging:
    """Copies one model's rows and sums between a device and the engine's memory."""

    def __init__(
        self,
        runtime: DeviceRuntime,
        device: torch.device,
        count: int,
        dtype: torch.dtype,
    ) -> None:
        """Prepares copies of rows.

        Args:
            runtime: the device's.
            device: where the model is.
            count: the elements of a row.
            dtype: their type.
        """
        self._runtime = runtime
        self._device, self._count, self._dtype = device, count, dtype
        self._out, self._in = runtime.stream(), runtime.stream()
        self._read: Any = None  # the stream and the event of `to_host`
        events = _borrow(runtime, device)
        weakref.finalize(self, _free.append, events).atexit = False
        self._events, self._held = events.out, events.held
        self._before, self._back = events.before, events.back
        self._next = 0

    def row(self) -> Tensor:
        """Returns device memory for one row [count], with undefined contents."""
        return torch.empty(self._count, dtype=self._dtype, device=self._device)

    def out(self, row: Tensor, host: Tensor, begin: int, end: int) -> int:
        """Copies row[begin:end] to the engine's memory, once it has been computed.

        Returns:
            The handle of the event after which `host` holds the copy.
        """
        self._after_current(self._out)
        self._runtime.copy(host[begin:end], row[begin:end], self._out)
        event = self._events[self._next]
        self._next = (self._next + 1) % len(self._events)
        self._runtime.record(event, self._out)
        self._hold(event, row, host)
        return self._runtime.handle(event)

    def back(self, host: Tensor) -> Tensor:
        """Returns a copy on the device of the sum `host` [count].

        The host does not wait for it; what the compute stream does next does.
        """
        total = self.row()
        self._after_current(self._in)  # an earlier kernel may still use this memory
        self._runtime.copy(total, host, self._in)
        self._runtime.record(self._back, self._in)
        self._runtime.wait(self._runtime.current(), self._back)
        self._hold(self._back, total, host)
        return total

    def to_host(self, source: Tensor) -> Tensor:
        """Returns a copy on the host of a few elements, and waits for it.

        The copy runs beside all that is being computed, so `source` must be complete.
        """
        if self._read is None:
            self._read = self._runtime.stream(), self._runtime.event()
        stream, event = self._read
        pinned = self._device.type == "cuda"
        out = torch.empty(source.shape, dtype=source.dtype, pin_memory=pinned)
        self._runtime.copy(out, source, stream)
        self._runtime.record(event, stream)
        self._runtime.synchronize(event)
        return out

    def drain(self) -> None:
        """Waits until all copies are done."""
        while self._held:
            self._runtime.synchronize(self._held.popleft()[0])

    def _after_current(self, stream: Any) -> None:
        """Lets `stream` go on only after what has been computed so far."""
        self._runtime.record(self._before, self._runtime.current())
        self._runtime.wait(stream, self._before)

    def _hold(self, event: Any, *tensors: Tensor) -> None:
        """Keeps tensors until the event is done, and drops those whose event is."""
        self._held.append((event, tensors))
        _drop_done(self._runtime, self._held)
