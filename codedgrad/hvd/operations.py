"""Horovod's operations on tensors, over `codedgrad.job.collectives`.

Each is a barrier. The asynchronous forms wait, too: the result is there when the call
returns, and `poll` is always True. So all workers call them in the same order; another
order is an error, since the names are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, MismatchError
from codedgrad.hvd.handles import done
from codedgrad.hvd.words import (
    Average,
    Compression,
    Max,
    Min,
    Product,
    ReduceOp,
    Sum,
    check_op,
    check_process_set,
    wire_of,
)
from codedgrad.job import collectives, runtime

if TYPE_CHECKING:
    from collections.abc import Sequence


def _op_of(average: bool | None, op: ReduceOp | None, factors: Any) -> ReduceOp:
    if average is not None and op is not None:
        raise ConfigError("give `op`, or the old `average`, not both")
    if average is not None:
        op = Average if average else Sum
    found = check_op(Average if op is None else op, (Average, Sum, Min, Max, Product))
    if found in (Min, Max, Product) and factors != (1.0, 1.0):
        raise ConfigError(f"prescale_factor and postscale_factor need a sum, not {op}")
    return found


def check_tensor(tensor: object, what: str) -> None:
    """Refuse what is no tensor.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"{what} takes a tensor, got {type(tensor).__qualname__}")


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """Return a multiple in the same type; of integers as in double, cut to integers."""
    if factor == 1.0:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor * factor
    return (tensor.double() * factor).to(tensor.dtype)


def _reduced(
    tensors: list[Tensor], names: list[str], op: ReduceOp, factors: tuple[float, float]
) -> list[Tensor]:
    scaled = [_scaled(t.detach(), factors[0]) for t in tensors]
    # The integers' mean is cut to integers, as in Horovod.
    whole = [not (t.is_floating_point() or t.is_complex()) for t in tensors]
    kinds = ["sum" if op is Average and w else op.value for w in whole]
    results: list[Tensor] = [torch.empty(0)] * len(tensors)
    for kind in sorted(set(kinds)):
        chosen = [i for i, k in enumerate(kinds) if k == kind]
        if op is Product:
            for i in chosen:
                results[i] = _product(scaled[i], f"{names[i]}, tensor {i}")
            continue
        # The name is part of what is compared.
        value = [{f"{names[i]}, tensor {i}": scaled[i]} for i in chosen]
        reduced = collectives.allreduce(value, op=kind)
        for i, one in zip(chosen, reduced, strict=True):
            (results[i],) = one.values()
    if op is Average:
        size = runtime.size()
        for i in [i for i, w in enumerate(whole) if w]:
            results[i] = torch.div(results[i], size, rounding_mode="trunc")
    return [_scaled(r, factors[1]) for r in results]


def _product(tensor: Tensor, name: str) -> Tensor:
    """Return the product of all workers' tensors, in the order of the workers."""
    told = collectives.allgather_object([name, list(tensor.shape), str(tensor.dtype)])
    if any(one != told[0] for one in told):
        raise MismatchError(f"the workers multiply unlike tensors: {told}")
    every = collectives.allgather(tensor[None])
    return every.prod(0, dtype=tensor.dtype)


class _Allreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Any, *tensors: Tensor) -> Any:
        ctx.how = how
        return tuple(_reduced(list(tensors), *how))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        names, op, factors = ctx.how
        if op not in (Average, Sum):
            raise ConfigError(f"an allreduce with op={op.name} has no gradient")
        back = [f"gradient of {name}" for name in names]
        return None, *_reduced(list(gradients), back, op, factors)


def grouped_allreduce(
    tensors: Sequence[Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = None,
) -> list[Tensor]:
    """Return several tensors, each reduced over all workers; see `allreduce`."""
    wire_of(compression)
    check_process_set(process_set)
    factors = (float(prescale_factor), float(postscale_factor))
    kind = _op_of(average, op, factors)
    for tensor in tensors:
        check_tensor(tensor, "an allreduce")
    names = [name or "unnamed"] * len(tensors)
    apply: Any = _Allreduce.apply
    return list(apply((names, kind, factors), *tensors))


def allreduce(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    **how: Any,
) -> Tensor:
    """Return a tensor reduced over all workers. Collective; has a gradient.

    Args:
        tensor: of any shape; the same shape and type on all workers.
        average: the old form of `op`: True is Average, False is Sum.
        name: is compared between the workers.
        compression: is not needed, since the sum is formed at full precision.
        op: Average (the default), Sum, Min, Max or Product. An average of integers is
            cut to an integer, as in Horovod.
        **how: `prescale_factor` and `postscale_factor` multiply before and after.

    Raises:
        ConfigError: bad arguments.
        MismatchError: names, shapes or types differ between workers.
    """
    check_tensor(tensor, "an allreduce")
    return grouped_allreduce([tensor], average, name, compression, op, **how)[0]


def allreduce_(tensor: Tensor, average: bool | None = None, **how: Any) -> Tensor:
    """Reduce a tensor in place; see `allreduce`."""
    result = allreduce(tensor, average, **how)
    with torch.no_grad():
        return tensor.copy_(result)


def grouped_allreduce_(
    tensors: Sequence[Tensor], average: bool | None = None, **how: Any
) -> list[Tensor]:
    """Reduce several tensors in place; see `allreduce`."""
    results = grouped_allreduce(tensors, average, **how)
    with torch.no_grad():
        return [t.copy_(r) for t, r in zip(tensors, results, strict=True)]


class _Allgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str) -> Tensor:
        ctx.name, length = name, tensor.shape[0] if tensor.dim() else 0
        gathered = collectives.allgather(tensor.detach())
        lengths = collectives.allgather_object([name, length])
        ctx.begin = sum(one[1] for one in lengths[: runtime.rank()])
        ctx.length = length
        if len({one[0] for one in lengths}) > 1:
            raise ConfigError(f"the workers gather tensors of other names: {lengths}")
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        names = [f"gradient of {ctx.name}"]
        (total,) = _reduced([gradient], names, Sum, (1.0, 1.0))
        return total[ctx.begin : ctx.begin + ctx.length], None


def allgather(
    tensor: Tensor, name: str | None = None, process_set: Any = None
) -> Tensor:
    """Concatenate every worker's tensor along the first dimension; has a gradient.

    See `codedgrad.allgather`.
    """
    check_process_set(process_set)
    check_tensor(tensor, "an allgather")
    apply: Any = _Allgather.apply
    return cast("Tensor", apply(tensor, name or "unnamed"))


def grouped_allgather(
    tensors: Sequence[Tensor], name: str | None = None, process_set: Any = None
) -> list[Tensor]:
    """Gather several tensors; see `allgather`."""
    return [allgather(t, f"{name}.{i}", process_set) for i, t in enumerate(tensors)]


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root_rank: int, name: str) -> Tensor:
        ctx.root, ctx.name = root_rank, name
        result = tensor.detach().clone()
        _broadcast_into(result, root_rank, name)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        names = [f"gradient of {ctx.name}"]
        (total,) = _reduced([gradient], names, Sum, (1.0, 1.0))
        mine = runtime.rank() == ctx.root
        return total if mine else torch.zeros_like(total), None, None


def _broadcast_into(tensor: Tensor, root_rank: int, name: str) -> None:
    from codedgrad.job.broadcast import broadcast_parameters

    broadcast_parameters({name: tensor}, root_rank)


def broadcast(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: Any = None
) -> Tensor:
    """Return the root worker's tensor. Collective; has a gradient.

    Raises:
        ConfigError: `root_rank` is no worker.
        MismatchError: names, roots, shapes or types differ between workers.
    """
    check_process_set(process_set)
    check_tensor(tensor, "a broadcast")
    apply: Any = _Broadcast.apply
    return cast("Tensor", apply(tensor, root_rank, name or "unnamed"))


def broadcast_(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: Any = None
) -> Tensor:
    """Take over the root worker's tensor in place; see `broadcast`."""
    check_process_set(process_set)
    check_tensor(tensor, "a broadcast")
    _broadcast_into(tensor.detach(), root_rank, name or "unnamed")
    return tensor


# ---- asynchronous forms, of which the result is there at once ----


def allreduce_async(tensor: Tensor, average: bool | None = None, **how: Any) -> int:
    """Return a handle of `allreduce`; see `synchronize`."""
    return done(allreduce, tensor, average, **how)


def allreduce_async_(tensor: Tensor, average: bool | None = None, **how: Any) -> int:
    """Return a handle of `allreduce_`; see `synchronize`."""
    return done(allreduce_, tensor, average, **how)


def grouped_allreduce_async(
    tensors: Sequence[Tensor], average: bool | None = None, **how: Any
) -> int:
    """Return a handle of `grouped_allreduce`; see `synchronize`."""
    return done(grouped_allreduce, tensors, average, **how)


def grouped_allreduce_async_(
    tensors: Sequence[Tensor], average: bool | None = None, **how: Any
) -> int:
    """Return a handle of `grouped_allreduce_`; see `synchronize`."""
    return done(grouped_allreduce_, tensors, average, **how)


def allgather_async(tensor: Tensor, name: str | None = None, **how: Any) -> int:
    """Return a handle of `allgather`; see `synchronize`."""
    return done(allgather, tensor, name=name, **how)


def grouped_allgather_async(
    tensors: Sequence[Tensor], name: str | None = None, **how: Any
) -> int:
    """Return a handle of `grouped_allgather`; see `synchronize`."""
    return done(grouped_allgather, tensors, name=name, **how)


def broadcast_async(
    tensor: Tensor, root_rank: int, name: str | None = None, **how: Any
) -> int:
    """Return a handle of `broadcast`; see `synchronize`."""
    return done(broadcast, tensor, root_rank, name=name, **how)


def broadcast_async_(
    tensor: Tensor, root_rank: int, name: str | None = None, **how: Any
) -> int:
    """Return a handle of `broadcast_`; see `synchronize`."""
    return done(broadcast_, tensor, root_rank, name=name, **how)
