"""What `allreduce` does with the values of all workers, once they are here.

A value is a tree of dictionaries, lists and tuples. Its leaves are numbers, tensors and
arrays; each has a name (its path), and a description that all workers must share.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.job import objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPS = ("mean", "sum", "max", "min")
_NUMBERS = (bool, int, float, complex)


def check_op(op: object) -> None:
    """Refuse an operation that there is not.

    Raises:
        ConfigError: with those that there are.
    """
    if op not in OPS:
        raise ConfigError(f"op must be one of {OPS}, got {op!r}")


class Leaves:
    """The leaves of one worker's value, in order.

    Args:
        items: (path, leaf) pairs; numpy's values are tensors already.
    """

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        self.items = items

    def describe(self) -> list[tuple[str, str]]:
        """Return (path, type and shape) pairs, which all workers must share."""
        return [(path, _description(leaf)) for path, leaf in self.items]

    def data(self) -> bytes:
        """Return all leaves as bytes."""
        return objects.encode([leaf for _, leaf in self.items])

    def rebuilt(self, like: Any, results: Sequence[Any]) -> Any:
        """Return results in the structure, and on the devices, of a value."""
        return _rebuilt(like, iter(results))


def leaves_of(value: Any, op: str) -> Leaves:
    """Return the leaves of a value.

    Raises:
        ConfigError: it holds something that `op` cannot reduce.
    """
    leaves = Leaves(list(_walk(value, "value")))
    for path, leaf in leaves.items:
        _check(path, leaf, op)
    return leaves


def reduced(leaves: Leaves, every: Sequence[bytes | memoryview], op: str) -> list[Any]:
    """Return the leaves reduced over all workers.

    Args:
        leaves: of this worker.
        every: the bytes of `Leaves.data` of each worker, by rank.
        op: one of `OPS`.

    Raises:
        ConfigError: a sum of integers does not fit their type.
    """
    values = [objects.decode(bytes(data)) for data in every]
    return [
        _reduced(path, [one[i] for one in values], op)
        for i, (path, _) in enumerate(leaves.items)
    ]


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        # By name: a dictionary made in another order is the same.
        for key in sorted(value, key=repr):
            yield from _walk(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        yield f"{path}: {type(value).__name__}", None
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}[{i}]")
    elif isinstance(value, (np.ndarray, np.generic)):
        try:
            yield (
                path,
                torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape),
            )
        except TypeError as error:
            raise ConfigError(f"{path}: {error}") from error
    else:
        yield path, value


def _rebuilt(like: Any, results: Iterator[Any]) -> Any:
    if isinstance(like, dict):
        found = {key: _rebuilt(like[key], results) for key in sorted(like, key=repr)}
        ordered = {key: found[key] for key in like}
        return ordered if type(like) is dict else type(like)(ordered)
    if isinstance(like, (list, tuple)):
        next(results)  # the entry of the container itself
        items = [_rebuilt(item, results) for item in like]
        if isinstance(like, tuple) and hasattr(like, "_fields"):
            return type(like)(*items)
        return items if type(like) is list else type(like)(items)
    result = next(results)
    if isinstance(like, np.generic):
        return like.dtype.type(result.item())
    if isinstance(like, np.ndarray):
        return result.numpy()
    return result.to(like.device) if isinstance(like, Tensor) else result


def _description(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"tensor of {str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
    return type(leaf).__name__


def _check(path: str, leaf: Any, op: str) -> None:
    """Refuse a leaf that cannot be reduced.

    Raises:
        ConfigError: with the remedy.
    """
    if isinstance(leaf, Tensor):
        if leaf.layout is not torch.strided or leaf.is_quantized:
            raise ConfigError(f"{path} is sparse or quantised; give {path}.to_dense()")
        if leaf.dtype is torch.bool and op in ("sum", "mean"):
            raise ConfigError(
                f"{path} is a tensor of bools, whose {op} is none; give its .int() or "
                f".float(), or use max (any) and min (all)"
            )
        if op == "mean" and not (leaf.is_floating_point() or leaf.is_complex()):
            raise ConfigError(
                f"{path} is a tensor of {leaf.dtype}, which cannot hold a mean; give "
                f"its .double(), or use op='sum'"
            )
        if leaf.is_complex() and op in ("max", "min"):
            raise ConfigError(f"{path} is complex, which has no order for {op}")
    elif leaf is None:
        return
    elif type(leaf) not in _NUMBERS:
        raise ConfigError(
            f"{path} is of type {type(leaf).__qualname__}, wanted a number, tensor or "
            f"array, or a dictionary, list or tuple of these; for other objects there "
            f"is codedgrad.allgather_object"
        )
    elif isinstance(leaf, complex) and op in ("max", "min"):
        raise ConfigError(f"{path} is complex, which has no order for {op}")


def _reduced(path: str, values: list[Any], op: str) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return _of_tensors(path, values, op)
    if op in ("max", "min"):
        if any(isinstance(v, float) and math.isnan(v) for v in values):
            return math.nan
        return max(values) if op == "max" else min(values)
    total = values[0]
    for value in values[1:]:
        total = total + value
    return (
        total / len(values)
        if op == "mean"
        else int(total)
        if type(total) is bool
        else total
    )


def _of_tensors(path: str, values: list[Tensor], op: str) -> Tensor:
    dtype = values[0].dtype
    total = values[0].to(_wide(dtype), copy=True)
    for value in values[1:]:
        if op == "max":
            total = torch.maximum(total, value.to(total.dtype))
        elif op == "min":
            total = torch.minimum(total, value.to(total.dtype))
        else:
            total += value.to(total.dtype)
    if op == "mean":
        total /= len(values)
    if op == "sum" and not (dtype.is_floating_point or dtype.is_complex):
        _check_fits(path, values, total, dtype)
    return total.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which values of a type are added."""
    if dtype.is_complex:
        return torch.complex128
    if dtype.is_floating_point:
        return torch.float64 if dtype.itemsize >= 4 else torch.float32
    return torch.bool if dtype is torch.bool else torch.int64


def _check_fits(
    path: str, values: list[Tensor], total: Tensor, dtype: torch.dtype
) -> None:
    """Refuse a sum of integers that its type cannot hold.

    Raises:
        ConfigError: with the remedy.
    """
    limits = torch.iinfo(dtype)
    inside = bool(((total >= limits.min) & (total <= limits.max)).all())
    if dtype is torch.int64:  # which has overflowed if it is far off
        near = torch.zeros_like(total, dtype=torch.float64)
        for value in values:
            near += value.double()
        inside = bool(((near - total.double()).abs() < 2.0**62).all())
    if not inside:
        raise ConfigError(
            f"the sum of {path} over the workers does not fit {dtype}; give a wider "
            f"type, such as {path}.long() or .double()"
        )
