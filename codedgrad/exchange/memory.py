"""Where rows and sums lie: in the host's memory, in pinned memory, or on a device.

A model on the CPU shares its rows with the engine. For a model on a device, rows and
sums are copied between torch's memory and the engine's, which is pinned memory or, with
an MPI that takes it, the device's own (see `codedgrad.row.devices`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from codedgrad.errors import EnvironmentSetupError, WorkerError
from codedgrad.exchange.base import RowBuffer
from codedgrad.job import environment
from codedgrad.row import devices

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.job.runtime import Runtime
    from codedgrad.row.layout import Layout

log = logging.getLogger("codedgrad")


class Memory(Protocol):
    """The memory of one exchange's rows and sums."""

    kind: str  # "host", "pinned" or "device", as `_engine.SessionSettings` takes it

    def opened(self, core: Any) -> None:
        """Called once, when the engine's session `core` (`_engine.Exchange`) is open.

        Raises:
            EnvironmentSetupError: the device was asked to sum rows and cannot.
            WorkerError: the job failed.
        """

    def row(self, core: Any) -> RowBuffer:
        """Returns memory of one row, with undefined contents."""

    def copied(self, data: RowBuffer, begin: int, end: int) -> int:
        """Brings elements [begin, end) of a row to the engine's memory.

        Returns:
            The device's event after which they are there; 0: they are there now.
        """

    def result(self, buffer: Any) -> tuple[Tensor, NDArray[Any]]:
        """Returns a decoded sum where the model is, and its tail on the CPU."""

    def close(self) -> None:
        """Waits until all copies are done."""


def memory_of(runtime: Runtime, layout: Layout, *, summable: bool) -> Memory:
    """Returns the memory for the rows of a model, by the device that it is on.

    Args:
        runtime: whose engine is bound to the device.
        layout: of the rows.
        summable: the device's kernels can decode rows of this code.
    """
    device = devices.runtime_of(layout.device)
    if device is None:
        return HostMemory(layout)
    return DeviceMemory(runtime, layout, device, summable=summable)


class HostMemory:
    """The rows of a model on the CPU: torch and the engine share them."""

    kind = "host"

    def __init__(self, layout: Layout) -> None:
        """`layout`: of the rows."""
        self._dtype, self._gradients = layout.dtype, layout.gradients
        self._tail = torch.empty(0, dtype=layout.dtype).numpy().dtype

    def opened(self, core: Any) -> None:
        """Does nothing: the processor sums."""

    def row(self, core: Any) -> RowBuffer:
        """See `Memory`."""
        buffer = core.acquire()
        host = torch.frombuffer(buffer, dtype=self._dtype)
        return RowBuffer(buffer, host, host)

    def copied(self, data: RowBuffer, begin: int, end: int) -> int:
        """Copies nothing: the row is there already."""
        del data, begin, end
        return 0

    def result(self, buffer: Any) -> tuple[Tensor, NDArray[Any]]:
        """See `Memory`."""
        host = torch.frombuffer(buffer, dtype=self._dtype)
        return host, np.frombuffer(buffer, self._tail)[self._gradients :]

    def close(self) -> None:
        """Does nothing: there are no copies."""


class DeviceMemory:
    """The rows of a model on a device, copied to and from the engine's memory."""

    def __init__(
        self,
        runtime: Runtime,
        layout: Layout,
        device: devices.DeviceRuntime,
        *,
        summable: bool,
    ) -> None:
        """Bind the engine to `device` and decide where rows lie; see `memory_of`."""
        from codedgrad.job import _engine

        self._runtime, self._device = runtime, device
        self._dtype, self._gradients = layout.dtype, layout.gradients
        calls, wanted = device.engine_calls(), environment.gpu_decode()
        bound = runtime.engine.bind_device(_engine.DeviceCalls(**calls))
        self._sums = bool(summable and calls["start_sum"]) and wanted != "0"
        same = bound == calls["device"]  # the engine keeps the first model's device
        self.kind = devices.rows_memory(
            device, calls, sums=summable and same, wanted=wanted
        )
        self._staging = devices.Staging(
            device, layout.device, layout.count, layout.dtype
        )
        self._told_unpinned = False

    def opened(self, core: Any) -> None:
        """Lets the device sum where that is faster, or wanted; checks that it can."""
        if not self._sums:
            return
        rank, always = self._runtime.rank, environment.gpu_decode() == "1"
        try:
            why = core.use_device_sums(always)
        except WorkerError:
            raise
        except RuntimeError as error:
            raise EnvironmentSetupError(f"worker {rank}: {error}") from None
        if why:
            log.warning("worker %d decodes on the CPU: %s", rank, why)

    def row(self, core: Any) -> RowBuffer:
        """See `Memory`."""
        with self._device.on():
            buffer = core.acquire()
        return RowBuffer(buffer, self._staging.row(), self._tensor(buffer))

    def copied(self, data: RowBuffer, begin: int, end: int) -> int:
        """See `Memory`."""
        return self._staging.out(data.tensor, data.host, begin, end)

    def result(self, buffer: Any) -> tuple[Tensor, NDArray[Any]]:
        """See `Memory`."""
        held = self._tensor(buffer)
        tail = held[self._gradients :]
        self._told_unpinned = self._told_unpinned or self._warn_unpinned()
        if self.kind == "device":
            tail = self._staging.to_host(tail)
        return self._staging.back(held), tail.numpy()

    def close(self) -> None:
        """See `Memory`."""
        self._staging.drain()

    def _tensor(self, buffer: Any) -> Tensor:
        """Returns the engine's `buffer` as a vector that keeps it alive."""
        if self.kind == "device":
            return self._device.view(buffer, self._dtype)
        return torch.frombuffer(buffer, dtype=self._dtype)

    def _warn_unpinned(self) -> bool:
        if not self._runtime.engine.stats().unpinned_bytes:
            return False
        log.warning(
            "worker %d could not pin all memory for copies to its device; they are "
            "slower so. Raise the limit of locked memory (ulimit -l)",
            self._runtime.rank,
        )
        return True
