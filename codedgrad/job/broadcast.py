"""Start all workers from the same parameters and optimizer state.

Both functions take the root worker's values, in the shape of Horovod's functions of
the same names. The bytes travel by MPI, since they are many and come once.
"""

from __future__ import annotations

import io
import pickle
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError, WorkerError
from codedgrad.job.agreement import check_agreement
from codedgrad.job.runtime import current
from codedgrad.job.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from codedgrad.job.runtime import Runtime

_CHUNK_BYTES = 1 << 30  # MPI counts are 31 bits


def broadcast_parameters(
    parameters: Mapping[str, Any] | Iterable[tuple[str, Any]], root_rank: int = 0
) -> None:
    """Copy the root worker's tensors into everybody's, in place. Collective.

    Args:
        parameters: `model.state_dict()` (buffers included) or
            `model.named_parameters()`. Entries that are no tensors are left alone.
        root_rank: the worker whose values are taken.

    Raises:
        ConfigError: `root_rank` is no worker, or a module was given instead of its
            parameters.
        MismatchError: names, shapes or types differ between workers.
    """
    runtime = current()
    _check_root(root_rank, runtime.size)
    if isinstance(parameters, torch.nn.Module):
        raise ConfigError(
            f"got the module {type(parameters).__name__}, wanted its parameters: "
            f"broadcast_parameters(model.state_dict())"
        )
    items = parameters.items() if hasattr(parameters, "items") else parameters
    tensors = [(n, t.detach()) for n, t in items if isinstance(t, Tensor)]
    check_agreement(
        "parameters to broadcast",
        [("root_rank", str(root_rank))]
        + [(n, f"{tuple(t.shape)} {t.dtype}") for n, t in tensors],
    )
    for name, tensor in tensors:
        flat = tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
        broadcast_bytes(runtime, flat, root_rank, name)
        if runtime.rank != root_rank:
            tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int = 0
) -> None:
    """Give every worker the root worker's optimizer state. Collective.

    Numbers and arrays of numpy become Python's and torch's, also on the root, so that
    all workers compute with the same types.

    Raises:
        ConfigError: `root_rank` is no worker, or the state holds objects that are
            neither tensors nor numbers, texts and containers of these.
        ValueError: the optimizers have other parameter groups (from torch).
    """
    runtime = current()
    _check_root(root_rank, runtime.size)
    if runtime.outside:  # it gets the state when it enters, if it is tracked
        return
    data = b""
    if runtime.rank == root_rank:
        for settings in (*optimizer.param_groups, *optimizer.state.values()):
            settings.update({k: _plain(v) for k, v in settings.items()})
        file = io.BytesIO()
        torch.save(_plain(optimizer.state_dict()), file)
        data = file.getvalue()
    sizes = runtime.gather(
        str(len(data)).encode(), "to broadcast the optimizer's state"
    )
    if runtime.rank == root_rank:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    else:
        flat = torch.zeros(int(sizes[root_rank]), dtype=torch.uint8)
    broadcast_bytes(runtime, flat, root_rank, "the optimizer's state")
    if runtime.rank != root_rank:
        try:
            state = torch.load(io.BytesIO(flat.numpy().tobytes()), weights_only=True)
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"the optimizer's state of worker {root_rank} holds something else "
                f"than tensors, numbers and texts ({error}); keep such objects out of "
                f"the optimizer's groups and state"
            ) from error
        optimizer.load_state_dict(state)


def _plain(value: Any) -> Any:
    """Return a state with Python's numbers and torch's tensors in place of numpy's.

    torch reads back nothing else, for safety, and a learning rate like
    `0.1 * np.sqrt(size)` is a number of numpy.
    """
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def _check_root(root_rank: int, size: int) -> None:
    if not 0 <= root_rank < size:
        raise ConfigError(f"root_rank must be 0 to {size - 1}, got {root_rank}")


def broadcast_bytes(runtime: Runtime, flat: Tensor, root_rank: int, name: str) -> None:
    """Copy the root's bytes into everybody's; `name` is for the log of the wait.

    Where the wait ends with an error, the bytes live on as long as MPI may write them
    (see `Request`); nobody else has them.

    Raises:
        WorkerError: the root is lost, or the job has failed.
    """
    if root_rank in runtime.absent:
        raise WorkerError(
            f"worker {root_rank} is lost, and {name} was to be broadcast from it"
        )
    if runtime.outside:  # it gets the values when it enters
        return
    channel, ranks = runtime.present()
    waiting = Waiting(runtime, f"to broadcast {name}", quiet_s=5.0)
    array = flat.numpy()
    for begin in range(0, array.size, _CHUNK_BYTES):
        chunk = array[begin : begin + _CHUNK_BYTES]
        request = channel.start_broadcast(chunk, ranks.index(root_rank))
        nap_s = 1e-5
        while not request.test():
            if runtime.engine.failed:
                raise runtime.error()
            waiting.tick([root_rank])
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, 1e-3)
