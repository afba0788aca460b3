"""Models on a device: rows to the host, sums back, neither of which stops the device.

    compute stream   ...backward| encode b |...          | wait E2 |  p.grad
                                     | E0                    ^
    copy-out stream             wait E0 | row_b -> host | E1 |
    engine (host)                       asks for E1, then sends and decodes bucket b
    copy-in stream                               sum -> device | E2

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

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import torch

from codedgrad.errors import ConfigError, EnvironmentSetupError

if TYPE_CHECKING:
    from torch import Tensor

_EVENTS = 64  # copies under way; with more, the engine waits for later ones, too
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device
_NOT_READY = 600  # cudaErrorNotReady


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

    def engine_calls(self) -> dict[str, int]:
        """Addresses and numbers for `_engine.Engine.bind_device`."""


class CudaRuntime:
    """CUDA through torch; the engine's calls through the CUDA runtime library."""

    def __init__(self, device: torch.device) -> None:
        """Of this device."""
        self._device = device

    def stream(self) -> torch.cuda.Stream:
        """A new one."""
        return torch.cuda.Stream(self._device)

    def event(self) -> torch.cuda.Event:
        """A new one, recorded once: it has a handle only then."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def current(self) -> torch.cuda.Stream:
        """The stream that torch computes on."""
        return torch.cuda.current_stream(self._device)

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        """See DeviceRuntime, as for what follows."""
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """On the device."""
        stream.wait_event(event)

    def copy(self, out: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
        """Without waiting, where the host memory is pinned."""
        with torch.cuda.stream(stream):
            out.copy_(source, non_blocking=True)

    def done(self, event: torch.cuda.Event) -> bool:
        """Ask (cudaEventQuery)."""
        return bool(event.query())

    def synchronize(self, event: torch.cuda.Event) -> None:
        """Wait (cudaEventSynchronize)."""
        event.synchronize()

    def handle(self, event: torch.cuda.Event) -> int:
        """The cudaEvent_t."""
        return int(event.cuda_event)

    def engine_calls(self) -> dict[str, int]:
        """Of the CUDA runtime that torch has loaded."""
        library = _cudart()
        index = self._device.index
        names = {
            "set_device": "cudaSetDevice",
            "pin": "cudaHostRegister",
            "unpin": "cudaHostUnregister",
            "query": "cudaEventQuery",
        }
        calls = {
            key: int(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)
            for key, name in names.items()
        }
        calls["device"] = torch.cuda.current_device() if index is None else index
        return calls | {"pin_flags": _PORTABLE, "not_ready": _NOT_READY}


def _cudart() -> ctypes.CDLL:
    """The CUDA runtime that torch has loaded."""
    major = str(torch.version.cuda).partition(".")[0]
    name = f"libcudart.so.{major}"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise EnvironmentSetupError(
            f"torch was built for CUDA {torch.version.cuda}, but its runtime {name} "
            f"cannot be loaded ({error}); install nvidia-cuda-runtime, or put its "
            f"folder on LD_LIBRARY_PATH"
        ) from None


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


class Staging:
    """Copies of one model's rows and sums between a device and pinned memory."""

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
