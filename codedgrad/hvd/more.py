"""The rarer operations of Horovod's, put together from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import ConfigError
from codedgrad.hvd.handles import done
from codedgrad.hvd.operations import allreduce
from codedgrad.hvd.words import (
    Average,
    ReduceOp,
    Refused,
    Sum,
    check_op,
    check_process_set,
)
from codedgrad.job import collectives, runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SETS = "All workers take part in everything"
add_process_set = Refused("add_process_set", _SETS)
remove_process_set = Refused("remove_process_set", _SETS)
sparse_allreduce_async = Refused(
    "sparse_allreduce_async", "Give tensor.to_dense() to allreduce_async"
)


def broadcast_object(
    obj: Any = None,
    root_rank: int = 0,
    name: str | None = None,
    process_set: Any = None,
    *,
    allow_pickle: bool = False,
) -> Any:
    """Return the root worker's object; see `codedgrad.broadcast_object`."""
    del name
    check_process_set(process_set)
    return collectives.broadcast_object(obj, root_rank, allow_pickle=allow_pickle)


def allgather_object(
    obj: Any,
    name: str | None = None,
    process_set: Any = None,
    *,
    allow_pickle: bool = False,
) -> list[Any]:
    """Return every worker's object, by rank; see `codedgrad.allgather_object`."""
    del name
    check_process_set(process_set)
    return collectives.allgather_object(obj, allow_pickle=allow_pickle)


def alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: Any = None,
) -> Any:
    """Send a part of a tensor to every worker, and return what they send. Collective.

    Args:
        tensor: of shape [n, ...].
        splits: how many rows of it each worker gets; None: equally many.
        name: is compared between the workers.
        process_set: the global one.

    Returns:
        The parts that came, one after the other by rank; with `splits` also how many
        rows came from each worker.

    Raises:
        ConfigError: `splits` does not fit the tensor, on some worker.
    """
    check_process_set(process_set)
    size, rank = runtime.size(), runtime.rank()
    rows = tensor.shape[0] if tensor.dim() else 0
    counts = [rows // size] * size if splits is None else [int(n) for n in splits]
    told = collectives.allgather_object(
        [name, counts, rows, str(tensor.dtype), list(tensor.shape[1:])]
    )
    for worker, (_, theirs, length, _, _) in enumerate(told):
        if len(theirs) != size or sum(theirs) != length or min(theirs) < 0:
            raise ConfigError(
                f"splits of worker {worker} must be {size} numbers with the sum "
                f"{length}, the rows of its tensor, got {theirs}"
            )
    if any((one[0], one[3:]) != (told[0][0], told[0][3:]) for one in told):
        raise ConfigError(f"the workers exchange tensors that do not fit: {told}")
    every = collectives.allgather(tensor.detach())
    parts, begin = [], 0
    for _, theirs, length, _, _ in told:
        first = begin + sum(theirs[:rank])
        parts.append(every[first : first + theirs[rank]])
        begin += length
    received = torch.tensor([theirs[rank] for _, theirs, *_ in told], dtype=torch.int32)
    result = torch.cat(parts)
    return result if splits is None else (result, received)


def alltoall_async(
    tensor: Tensor, splits: Any = None, name: str | None = None, **how: Any
) -> int:
    """Return a handle of `alltoall`; see `synchronize`."""
    return done(alltoall, tensor, splits, name=name, **how)


def reducescatter(
    tensor: Tensor,
    name: str | None = None,
    compression: Any = None,
    op: ReduceOp = Average,
    **how: Any,
) -> Tensor:
    """Return this worker's part of a tensor reduced over all workers. Collective.

    The first dimension is divided into parts, the first of which are one longer where
    it does not divide evenly; see `allreduce` for the arguments.
    """
    del compression
    check_op(op, (Average, Sum))
    if tensor.dim() == 0:
        raise ConfigError("reducescatter takes a tensor of one dimension or more")
    total = allreduce(tensor, name=name, op=op, **how)
    size, rank, rows = runtime.size(), runtime.rank(), tensor.shape[0]
    begin = rank * (rows // size) + min(rank, rows % size)
    return total[begin : begin + rows // size + (rank < rows % size)]


def reducescatter_async(tensor: Tensor, name: str | None = None, **how: Any) -> int:
    """Return a handle of `reducescatter`; see `synchronize`."""
    return done(reducescatter, tensor, name=name, **how)


def grouped_reducescatter(
    tensors: Sequence[Tensor], name: str | None = None, **how: Any
) -> list[Tensor]:
    """Reduce and scatter several tensors; see `reducescatter`."""
    return [reducescatter(t, f"{name}.{i}", **how) for i, t in enumerate(tensors)]


def grouped_reducescatter_async(
    tensors: Sequence[Tensor], name: str | None = None, **how: Any
) -> int:
    """Return a handle of `grouped_reducescatter`; see `synchronize`."""
    return done(grouped_reducescatter, tensors, name=name, **how)
