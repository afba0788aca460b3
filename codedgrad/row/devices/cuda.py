"""CUDA devices: codedgrad uses them through torch, and the engine through addresses.

The engine knows neither torch nor CUDA. It gets the addresses of the few functions that
it calls, from the CUDA runtime library that torch has loaded and from codedgrad's own
kernels.
"""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job import runtime
from codedgrad.ops.library import kernels

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

log = logging.getLogger("codedgrad")

# cudaHostRegisterPortable | Mapped: pinned for every device, in reach of its kernels.
_PINNED = 3
_NOT_READY = 600  # cudaErrorNotReady
_NO_SUMS = {"start_sum": 0, "sum_done": 0}


class CudaRuntime:
    """A CUDA device, see `codedgrad.row.devices.base.DeviceRuntime`."""

    def __init__(self, device: torch.device) -> None:
        """Uses this device."""
        self._device = device

    def __eq__(self, other: object) -> bool:
        """Returns whether both are the same device, so that they may share events."""
        return isinstance(other, CudaRuntime) and other._device == self._device

    def __hash__(self) -> int:
        """Returns the device's hash."""
        return hash(self._device)

    def stream(self) -> torch.cuda.Stream:
        """Returns a new CUDA stream on this device."""
        return torch.cuda.Stream(self._device)

    def event(self) -> torch.cuda.Event:
        """Returns a new event, recorded once, because it has a handle only then."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def current(self) -> torch.cuda.Stream:
        """Returns the stream on which torch computes."""
        return torch.cuda.current_stream(self._device)

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        """Makes `event` done as soon as all that is in `stream` now is done."""
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """Lets what comes into `stream` later begin after `event`, on the device."""
        stream.wait_event(event)

    def copy(self, out: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
        """Copies in `stream`; the host goes on if its memory is pinned."""
        with torch.cuda.stream(stream):
            out.copy_(source, non_blocking=True)

    def done(self, event: torch.cuda.Event) -> bool:
        """Returns whether the event is done (cudaEventQuery)."""
        return bool(event.query())

    def synchronize(self, event: torch.cuda.Event) -> None:
        """Makes the host wait until the event is done (cudaEventSynchronize)."""
        event.synchronize()

    def handle(self, event: torch.cuda.Event) -> int:
        """Returns the event's cudaEvent_t."""
        return int(event.cuda_event)

    def on(self) -> AbstractContextManager[None]:
        """Returns a context in which this thread's calls are about this device."""
        return torch.cuda.device(self._device)

    def engine_calls(self) -> dict[str, int]:
        """Returns addresses in the CUDA runtime library, and constants."""
        library = _cudart()
        index = self._device.index
        names = {
            "set_device": "cudaSetDevice",
            "pin": "cudaHostRegister",
            "unpin": "cudaHostUnregister",
            "query": "cudaEventQuery",
            "allocate": "cudaMalloc",
            "release": "cudaFree",
            "take_error": "cudaGetLastError",
        }
        calls = {
            key: int(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)
            for key, name in names.items()
        }
        calls["device"] = torch.cuda.current_device() if index is None else index
        calls |= {"pin_flags": _PINNED, "not_ready": _NOT_READY}
        return calls | self._sums(calls["device"])

    def direct(self) -> bool:
        """Returns whether the job's messages may lie in the device's memory."""
        return runtime.current().channel.reads_cuda_memory()

    def view(self, buffer: Any, dtype: torch.dtype) -> Tensor:
        """Returns the engine's `buffer` as a vector, by CUDA's array interface.

        Raises:
            EnvironmentSetupError: the buffer is not on this device.
        """
        found = torch.as_tensor(_Memory(buffer, dtype), device=self._device)
        if found.data_ptr() != buffer.address:  # torch copies from another device
            raise EnvironmentSetupError(
                f"the engine's memory is not on {self._device}; call "
                f"torch.cuda.set_device({self._device.index}) before codedgrad, or set "
                f"CODEDGRAD_GPU_DIRECT=0"
            )
        return found

    def _sums(self, index: int) -> dict[str, int]:
        """Returns the addresses of the kernels that sum rows; 0 if they do not fit."""
        from codedgrad.job import _engine

        try:
            built = kernels("_ops_cuda")
        except EnvironmentSetupError as error:
            log.info("sums are formed on the CPU: %s", error)
            return dict(_NO_SUMS)
        if getattr(built, "DEVICE_SUM_BYTES", 0) != _engine.DEVICE_SUM_BYTES:
            log.warning(
                "sums are formed on the CPU: the CUDA kernels are of another version. "
                "CODEDGRAD_CUDA=1 pip install -e . builds them"
            )
            return dict(_NO_SUMS)
        if not built.sums_host_memory(index):
            log.info("sums are formed on the CPU, whose memory this GPU does not reach")
            return dict(_NO_SUMS)
        return dict(built.engine_calls())


class _Memory:
    """Shows memory of the engine to torch.as_tensor, whose tensor keeps this object."""

    def __init__(self, buffer: Any, dtype: torch.dtype) -> None:
        self._buffer = buffer
        self.__cuda_array_interface__ = {
            "shape": (buffer.bytes // dtype.itemsize,),
            "typestr": f"<f{dtype.itemsize}",
            "data": (buffer.address, False),
            "version": 3,
        }


def _cudart() -> ctypes.CDLL:
    """Returns the CUDA runtime that torch has loaded."""
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
