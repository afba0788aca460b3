"""What a device has to offer, and which device runtime a model needs.

[Note: seam] Everything in codedgrad knows a device as the few calls on streams and
events of `DeviceRuntime`. `CudaRuntime` is the real one. The tests have another, whose
copies are done late, by threads, so that whoever reads too early is found out.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from codedgrad.errors import ConfigError
from codedgrad.job import environment
from codedgrad.row.devices.cuda import CudaRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor


class DeviceRuntime(Protocol):
    """Streams, events and memory of one device."""

    def stream(self) -> Any:
        """Returns a new stream."""

    def event(self) -> Any:
        """Returns a new event."""

    def current(self) -> Any:
        """Returns the stream on which this thread computes."""

    def record(self, event: Any, stream: Any) -> None:
        """Makes `event` done as soon as all that is in `stream` now is done."""

    def wait(self, stream: Any, event: Any) -> None:
        """Lets what comes into `stream` later begin after `event`, on the device."""

    def copy(self, out: Tensor, source: Tensor, stream: Any) -> None:
        """Copies in `stream`, between the device and the host; the host goes on."""

    def done(self, event: Any) -> bool:
        """Returns whether the event is done."""

    def synchronize(self, event: Any) -> None:
        """Makes the host wait until the event is done."""

    def handle(self, event: Any) -> int:
        """Returns the number by which the engine's `query` knows the event."""

    def on(self) -> AbstractContextManager[Any]:
        """Returns a context in which this thread's calls are about this device."""

    def engine_calls(self) -> dict[str, int]:
        """Returns the addresses and numbers for `_engine.Engine.bind_device`."""

    def direct(self) -> bool:
        """Returns whether MPI can send from the device's memory and receive there."""

    def view(self, buffer: Any, dtype: torch.dtype) -> Tensor:
        """Returns the engine's `buffer` of device memory as a vector, which keeps it.

        Raises:
            EnvironmentSetupError: the buffer is not on this device.
        """


def check(device: torch.device) -> None:
    """Refuses devices whose memory cannot be reached.

    Raises:
        ConfigError: the device is neither a CPU nor a CUDA device.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"the model is on {device}; gradients can be exchanged from CPUs and CUDA "
            f"devices: use model.cpu() or model.cuda()"
        )


def runtime_of(device: torch.device) -> DeviceRuntime | None:
    """Returns the device's runtime; None for the CPU, whose memory the engine reads."""
    return None if device.type == "cpu" else CudaRuntime(device)


def on_host(device: torch.device) -> bool:
    """Returns whether the host reads this device's memory, and need not wait for it."""
    return device.type == "cpu"


def put(out: Tensor, values: Tensor) -> None:
    """Copies values of the host to a tensor of any device, without waiting for it."""
    if out.device.type == "cpu":
        out.copy_(values)
    else:  # from memory that is not pinned, torch would wait for the whole stream
        out.copy_(values.to(out.dtype).pin_memory(), non_blocking=True)


@contextmanager
def selected(device: torch.device) -> Iterator[int]:
    """Makes kernels start on this device; yields the stream in which torch computes."""
    if device.type == "cpu":
        yield 0
        return
    with torch.cuda.device(device):
        yield int(torch.cuda.current_stream().cuda_stream)


def rows_memory(
    device: DeviceRuntime, calls: dict[str, int], *, sums: bool, wanted: str
) -> str:
    """Decides where the engine keeps the rows and sums of a model on a device.

    Args:
        device: the model's.
        calls: what its `engine_calls` returned.
        sums: whether the device's kernels can decode the rows.
        wanted: the value of CODEDGRAD_GPU_DECODE.

    Returns:
        "device" for the device's own memory, where MPI takes it, else "pinned" for
        pinned memory of the host.
    """
    able = sums and calls["start_sum"] and calls["allocate"] and wanted != "0"
    return (
        "device" if able and environment.gpu_direct() and device.direct() else "pinned"
    )
