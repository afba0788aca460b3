"""Models on a device: rows to the engine, sums back, neither of which stops the device.

    compute stream   ...backward| encode b |...              | wait E2 |  p.grad
                                     | E0                        ^
    copy-out stream             wait E0 | row_b -> engine | E1   |
    engine (host)                       asks for E1, then sends bucket b, decodes it
    sum stream                                  rows -> sum of b | E3, asked for
    copy-in stream                               sum of all -> torch's memory | E2

The engine's memory is what MPI takes (`rows_memory`): pinned memory of the host, or,
with a CUDA-aware MPI, the device's own. Either way it is a copy of torch's memory,
which torch's streams alone order. The sum stream is the engine's
(csrc/ops/cuda/tree_sum.cu); where the processor decodes there is none.

The engine reads a row's bucket only when E1 is done (`cudaEventQuery`, asked by its own
thread, so neither Python nor the device is waited for); whatever uses the sum on the
device comes after E2 in the compute stream. Nothing synchronises the whole device.

Owners and lifetimes: `Staging` holds both ends of a copy until its event is done. The
events are its own and live as long as it does: one is recorded again only for a later
copy on the same stream, so an engine that still asks for the earlier one waits a little
longer, never too short.

[Note: seam] `Staging` is the whole logic and knows a device as a few calls on streams
and events (`DeviceRuntime`). `CudaRuntime` is the real one; the tests have one whose
copies are done late, by threads.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import torch

from codedgrad.errors import ConfigError
from codedgrad.job import environment
from codedgrad.row.devices.cuda import CudaRuntime

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

_EVENTS = 64  # copies under way; with more, the engine waits for later ones, too


class DeviceRuntime(Protocol):
    """Streams and events of one device."""

    def stream(self) -> Any:
        """A new stream."""

    def event(self) -> Any:
        """A new event."""

    def current(self) -> Any:
        """The stream on which this thread computes."""

    def record(self, event: Any, stream: Any) -> None:
        """`event` is done when all that is in `stream` now is."""

    def wait(self, stream: Any, event: Any) -> None:
        """What comes later in `stream` comes after `event`."""

    def copy(self, out: Tensor, source: Tensor, stream: Any) -> None:
        """Copy in `stream`; between device and host."""

    def done(self, event: Any) -> bool:
        """Is the event done?"""

    def synchronize(self, event: Any) -> None:
        """Wait until the event is done."""

    def handle(self, event: Any) -> int:
        """What the engine's `query` takes."""

    def on(self) -> AbstractContextManager[Any]:
        """Inside, this thread's calls are about this device."""

    def engine_calls(self) -> dict[str, int]:
        """Addresses and numbers for `_engine.Engine.bind_device`."""

    def direct(self) -> bool:
        """Can MPI send from the device's memory, and receive there?"""

    def view(self, buffer: Any, dtype: torch.dtype) -> Tensor:
        """The engine's `buffer` of device memory as a vector, which keeps it.

        Raises:
            EnvironmentSetupError: it is not on this device.
        """


def check(device: torch.device) -> None:
    """Refuse devices whose memory cannot be reached.

    Raises:
        ConfigError: neither a CPU nor a CUDA device.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"the model is on {device}; gradients can be exchanged from CPUs and CUDA "
            f"devices: use model.cpu() or model.cuda()"
        )


def runtime_of(device: torch.device) -> DeviceRuntime | None:
    """None for the CPU, whose memory the engine reads itself."""
    return None if device.type == "cpu" else CudaRuntime(device)


def rows_memory(
    device: DeviceRuntime, calls: dict[str, int], *, sums: bool, wanted: str
) -> str:
    """Where the engine keeps rows and sums of a model on this device.

    Args:
        device: of the model.
        calls: its `engine_calls`.
        sums: the rows are ones that its kernels can decode.
        wanted: CODEDGRAD_GPU_DECODE.

    Returns:
        "device" where MPI takes its memory, else "pinned".
    """
    able = sums and calls["start_sum"] and calls["allocate"] and wanted != "0"
    return (
        "device" if able and environment.gpu_direct() and device.direct() else "pinned"
    )


class Staging:
    """Copies of one model's rows and sums between a device and the engine's memory."""

    def __init__(
        self,
        runtime: DeviceRuntime,
        device: torch.device,
        count: int,
        dtype: torch.dtype,
    ) -> None:
        """Rows of `count` elements on `device`."""
        self._runtime = runtime
        self._device, self._count, self._dtype = device, count, dtype
        self._out, self._in = runtime.stream(), runtime.stream()
        self._read: Any = None  # a third stream, and its event
        self._events = [runtime.event() for _ in range(_EVENTS)]
        self._before = runtime.event()  # E0, and the like for sums
        self._back = runtime.event()  # E2
        self._next = 0
        self._held: deque[tuple[Any, tuple[Tensor, ...]]] = deque()  # by event, in turn

    def row(self) -> Tensor:
        """Device memory of one row [count], contents undefined."""
        return torch.empty(self._count, dtype=self._dtype, device=self._device)

    def out(self, row: Tensor, host: Tensor, begin: int, end: int) -> int:
        """Copy row[begin:end] to the host after what computes it.

        Returns:
            The event (its handle) after which `host` holds it.
        """
        self._after_current(self._out)
        self._runtime.copy(host[begin:end], row[begin:end], self._out)
        event = self._events[self._next]
        self._next = (self._next + 1) % len(self._events)
        self._runtime.record(event, self._out)
        self._hold(event, row, host)
        return self._runtime.handle(event)

    def back(self, host: Tensor) -> Tensor:
        """The sum [count] on the device; what this stream computes next may read it."""
        total = self.row()
        self._after_current(self._in)  # memory that an earlier kernel may still use
        self._runtime.copy(total, host, self._in)
        self._runtime.record(self._back, self._in)
        self._runtime.wait(self._runtime.current(), self._back)
        self._hold(self._back, total, host)
        return total

    def to_host(self, source: Tensor) -> Tensor:
        """A few elements of what is complete, beside all that is computed; waits."""
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
        """Wait until all copies are done."""
        while self._held:
            self._runtime.synchronize(self._held.popleft()[0])

    def _after_current(self, stream: Any) -> None:
        self._runtime.record(self._before, self._runtime.current())
        self._runtime.wait(stream, self._before)

    def _hold(self, event: Any, *tensors: Tensor) -> None:
        self._held.append((event, tensors))
        while self._held and self._runtime.done(self._held[0][0]):
            self._held.popleft()


class Pace:
    """Bounds how many module boundaries the host runs ahead of the device.

    A host that has queued a whole pass can no longer abandon it.
    """

    def __init__(self, runtime: DeviceRuntime, ahead: int = 8) -> None:
        """At most `ahead` boundaries."""
        self._runtime = runtime
        self._free = [runtime.event() for _ in range(ahead)]
        self._under_way: deque[Any] = deque()

    def visit(self) -> None:
        """At a boundary: wait for the one that is `ahead` before it."""
        if not self._free:
            event = self._under_way.popleft()
            self._runtime.synchronize(event)
            self._free.append(event)
        event = self._free.pop()
        self._runtime.record(event, self._runtime.current())
        self._under_way.append(event)
