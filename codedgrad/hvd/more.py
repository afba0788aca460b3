"""The rarer operations of Horovod's, put together from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from codedgrad.errors import ConfigError, MismatchError
from codedgrad.hvd.handles import Handle, done
from codedgrad.hvd.operations import allreduce, check_tensor
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


def barrier(process_set: Any = None) -> None:
    """Wait until all workers have called this; see `codedgrad.barrier`."""
    check_process_set(process_set)
    runtime.barrier()


def sparse_allreduce_async(
    tensor: Tensor, name: str | None = None, op: ReduceOp = Average, **how: Any
) -> Handle:
    """Return a handle of a sparse tensor's mean or sum over all workers.

    Like any handle it is given to `synchronize`; it may also be called. Indices and
    values are gathered, so this costs as many bytes as all workers have values.

    Raises:
        ConfigError: the tensor is not sparse (COO), or `op` neither Average nor Sum.
        MismatchError: shapes or types differ between workers.
    """
    check_process_set(how.pop("process_set", None))
    return Handle(done(_sparse_allreduce, tensor, op, name=name, **how))


def _sparse_allreduce(tensor: Tensor, op: ReduceOp, name: str | None = None) -> Tensor:
    check_op(op, (Average, Sum))
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.sparse_coo:
        found = getattr(tensor, "layout", type(tensor).__qualname__)
        raise ConfigError(
            f"sparse_allreduce_async takes a sparse COO tensor, got {found}; give a "
            f"dense one to allreduce_async"
        )
    mine = tensor.detach().coalesce()
    told = collectives.allgather_object([name, list(mine.shape), mine.sparse_dim()])
    if any(one != told[0] for one in told):
        raise MismatchError(f"the workers reduce unlike sparse tensors: {told}")
    indices = collectives.allgather(mine.indices().t().contiguous()).t()
    values = collectives.allgather(mine.values())
    if op is Average:
        values = values / runtime.size()
    total = torch.sparse_coo_tensor(
        indices, values, mine.shape, device=mine.device, check_invariants=False
    )
    return total.coalesce()


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


class _Alltoall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], name: Any) -> Any:
        parts, received = _exchanged(tensor.detach(), counts, name)
        ctx.back, ctx.name = received, name
        return torch.cat(parts), torch.tensor(received, dtype=torch.int32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        parts, _ = _exchanged(gradient, ctx.back, f"gradient of {ctx.name}")
        return torch.cat(parts), None, None


def alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: Any = None,
) -> Any:
    """Send a part of a tensor to every worker, and return what they send. Collective.

    The result has a gradient.

    Args:
        tensor: of shape [n, ...].
        splits: how many rows of it each worker gets, integers; None: equally many.
        name: is compared between the workers.
        process_set: the global one.

    Returns:
        The parts that came, one after the other by rank; with `splits` also how many
        rows came from each worker.

    Raises:
        ConfigError: `splits` does not fit the tensor, or tensors do not fit, on some
            worker.
    """
    check_process_set(process_set)
    check_tensor(tensor, "an alltoall")
    size = runtime.size()
    rows = tensor.shape[0] if tensor.dim() else 0
    given: Any = [rows // size] * size if splits is None else splits
    if isinstance(given, torch.Tensor) and given.is_floating_point():
        raise ConfigError(f"splits must be integers, got {given.dtype}")
    apply: Any = _Alltoall.apply
    result, received = apply(tensor, [int(n) for n in given], name)
    return result if splits is None else (result, received)


def _exchanged(
    tensor: Tensor, counts: list[int], name: Any
) -> tuple[list[Tensor], list[int]]:
    """Return the parts that the workers send to this one, and how many rows each has.

    Raises:
        ConfigError: see `alltoall`.
    """
    size, rank = runtime.size(), runtime.rank()
    rows = tensor.shape[0] if tensor.dim() else 0
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
    every = collectives.allgather(tensor)
    parts, begin = [], 0
    for _, theirs, length, _, _ in told:
        first = begin + sum(theirs[:rank])
        parts.append(every[first : first + theirs[rank]])
        begin += length
    return parts, [theirs[rank] for _, theirs, *_ in told]


def alltoall_async(
    tensor: Tensor, splits: Any = None, name: str | None = None, **how: Any
) -> int:
    """Return a handle of `alltoall`; see `synchronize`."""
    return done(alltoall, tensor, splits, name=name, **how)


class _Reducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, op: ReduceOp, name: Any, how: Any) -> Tensor:
        ctx.op, ctx.how = op, how
        total = allreduce(tensor.detach(), name=name, op=op, **how)
        size, rank, rows = runtime.size(), runtime.rank(), tensor.shape[0]
        begin = rank * (rows // size) + min(rank, rows % size)
        return total[begin : begin + rows // size + (rank < rows % size)]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        factor = float(runtime.size() if ctx.op is Sum else 1)
        for name in ("prescale_factor", "postscale_factor"):
            factor *= ctx.how.get(name, 1.0)
        return collectives.allgather(gradient * factor), None, None, None


def reducescatter(
    tensor: Tensor,
    name: str | None = None,
    compression: Any = None,
    op: ReduceOp = Average,
    **how: Any,
) -> Tensor:
    """Return this worker's part of a tensor reduced over all workers. Collective.

    The first dimension is divided into parts, the first of which are one longer where
    it does not divide evenly; see `allreduce` for the arguments. The gradient is
    Horovod's: all workers' gradients one after the other, times the number of workers
    where `op` is Sum.
    """
    del compression
    check_op(op, (Average, Sum))
    check_tensor(tensor, "a reducescatter")
    if tensor.dim() == 0:
        raise ConfigError("reducescatter takes a tensor of one dimension or more")
    apply: Any = _Reducescatter.apply
    return cast("Tensor", apply(tensor, op, name, how))


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
