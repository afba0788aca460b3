"""Tensors of any kind: named places in modules, equality by bits, change and its undo.

A module holds its tensors in two dictionaries, `_parameters` and `_buffers`. A `Place`
is a key in one of them, so a tensor that is assigned anew is found again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Types whose values a row cannot carry, because a change of them has no size.
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Place(NamedTuple):
    """Where a module holds a tensor.

    Attributes:
        name: the name of the tensor for messages, such as "encoder.0.weight".
        holder: the module's own dictionary.
        key: the tensor's key in it.
        parameter: whether it is a parameter, not a buffer.
        persistent: whether the tensor is part of the module's state_dict.
    """

    name: str
    holder: dict[str, Any]
    key: str
    parameter: bool
    persistent: bool

    def tensor(self) -> Tensor | None:
        """Returns the tensor that is there now."""
        return self.holder.get(self.key)


def own_dict(held: Any) -> dict[str, Any]:
    """Returns a module's own dictionary; a copy of what TorchScript has instead."""
    return held if isinstance(held, dict) else dict(held.items())


def kind(tensor: Tensor | None) -> str:
    """Returns shape and type of a tensor, for messages and comparisons."""
    if tensor is None:
        return "nothing"
    shape = "nested" if tensor.is_nested else tuple(tensor.shape)
    return f"{shape} {tensor.dtype}"


def plain_parts(tensor: Tensor) -> list[Tensor] | None:
    """Returns the dense tensors of which a tensor consists; None if they are unknown.

    A dense tensor consists of itself, a sparse one of its indices and values, a
    quantised one of its integers, and a nested one of the tensors in it. One on the
    device "meta" has no values.
    """
    t = tensor.detach()
    if t.is_meta:
        return None
    if t.is_nested:
        return list(t.unbind())
    if t.is_quantized:
        return [t.int_repr()]
    if t.layout == torch.strided:
        return [t] if type(tensor) in (torch.Tensor, torch.nn.Parameter) else None
    if t.layout == torch.sparse_coo:
        return [t._indices(), t._values()]
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [t.crow_indices(), t.col_indices(), t.values()]
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [t.ccol_indices(), t.row_indices(), t.values()]
    return None


def travels(tensor: Tensor) -> bool:
    """Returns whether a row can carry a change of this tensor."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    dense = dense and not tensor.is_nested and not tensor.is_meta
    return dense and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors have the same shape, type and bits.

    Tensors whose parts are unknown count as the same: only versions tell of them.
    """
    if kind(a) != kind(b) or a.device != b.device:
        return False
    ours, theirs = plain_parts(a), plain_parts(b)
    if ours is None or theirs is None:
        return True
    return len(ours) == len(theirs) and all(
        x.shape == y.shape and torch.equal(_as_bits(x), _as_bits(y))
        for x, y in zip(ours, theirs, strict=True)
    )


def digest(tensor: Tensor) -> int | None:
    """Returns a number that changes, almost surely, when a tensor's values do.

    It is None for a tensor whose parts are unknown.
    """
    parts = plain_parts(tensor)
    if parts is None:
        return None
    return sum(int(_as_bits(p).sum(dtype=torch.int64)) for p in parts)


def writable(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a copy if its elements cannot be written one by one.

    They share memory (`expand`), or are negated or conjugated only when they are read.
    """
    if tensor.is_conj() or tensor.is_neg():
        return tensor.detach().resolve_conj().resolve_neg()
    shared = any(
        stride == 0 and size > 1
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return (
        tensor.detach().clone(memory_format=torch.contiguous_format)
        if shared
        else tensor
    )


def real(tensor: Tensor) -> Tensor:
    """Returns a view of real numbers: a complex tensor gets one more dimension."""
    t = tensor.detach()
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def change(now: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns now - before in a row's type; 0 where they are equal, also infinite."""
    a, b = _wide(real(now), dtype), _wide(real(before), dtype)
    return torch.where(a == b, 0, a - b).to(dtype)


def changed(before: Tensor, change: Tensor) -> Tensor:
    """Returns before + change, in the type of `before`.

    Integers are rounded to the nearest, and booleans to the majority.
    """
    old = real(before)
    if old.is_floating_point():
        new = _wide(old, change.dtype) + change
    elif old.dtype == torch.bool:
        new = _wide(old, change.dtype) + change > 0.5
    else:
        new = _wide(old, change.dtype) + change.round().to(torch.int64)
    new = new.to(old.dtype)
    return torch.view_as_complex(new) if before.is_complex() else new


def _wide(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values in a type in which differences neither wrap nor lose bits."""
    if t.dtype in (torch.float32, torch.float64, torch.int64):
        return t
    if t.is_floating_point() or t.dtype == torch.bool:
        return t.to(dtype)
    return t.to(torch.int64)


def _as_bits(t: Tensor) -> Tensor:
    """Returns the elements as integers, so that NaN equals NaN and 0 is not -0."""
    t = real(t) if t.is_complex() else t.resolve_neg()
    return t.view(_WHOLE[t.element_size()])
