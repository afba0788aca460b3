"""Batches on a device, and batches put together, whatever holds their tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Placer:
    """Copies batches to a device.

    Copies to a GPU run in a stream of their own. They so need not wait for what the
    device has still to compute of the step before, and the host does not wait for those
    from pinned memory (`pin_memory=True`). The stream in which the batch is used waits.
    """

    def __init__(self, device: Any) -> None:
        """Take the device; None leaves batches where they are."""
        self._device = None if device is None else torch.device(device)
        self._stream: Any = None

    def __call__(self, batch: Any) -> Any:
        """Return the batch with all of its tensors on the device."""
        device = self._device
        if device is None:
            return batch
        if device.type != "cuda":
            return mapped(batch, lambda t: t.to(device))
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        found: list[Tensor] = []

        def copied(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:  # made by what the current stream computes
                self._stream.wait_stream(current)
            found.append(tensor.to(device, non_blocking=True))
            return found[-1]

        current = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._stream):
            placed = mapped(batch, copied)
        current.wait_stream(self._stream)
        for tensor in found:  # its memory belongs to the current stream, too
            tensor.record_stream(current)
        return placed


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with its tensors replaced by what `function` makes of them.

    Dicts and other mappings (BatchEncoding), lists, tuples, named tuples and packed
    sequences are of the same type afterwards; everything else is as it was.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        orders = (value.sorted_indices, value.unsorted_indices)
        moved = [None if order is None else function(order) for order in orders]
        return PackedSequence(function(value.data), value.batch_sizes, *moved)
    if isinstance(value, Mapping):
        return _mapping(value, {k: mapped(v, function) for k, v in value.items()})
    if isinstance(value, tuple | list):
        return _sequence(value, [mapped(v, function) for v in value])
    return value


def joined(batches: Sequence[Any]) -> Any:
    """Return batches as one: their tensors one after the other, lists likewise.

    Raises:
        ConfigError: they are not of one kind, or hold what cannot be joined.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    kinds = {type(b).__name__ for b in batches}
    if len(kinds) > 1:
        raise ConfigError(f"parts of a batch are of several types: {sorted(kinds)}")
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    if isinstance(first, Mapping):
        if any(b.keys() != first.keys() for b in batches):
            keys = [sorted(map(str, b)) for b in batches]
            raise ConfigError(f"parts of a batch have other keys: {keys[:2]}")
        return _mapping(first, {k: joined([b[k] for b in batches]) for k in first})
    if isinstance(first, tuple) and not isinstance(first, PackedSequence):
        if len({len(b) for b in batches}) > 1:
            raise ConfigError("parts of a batch are tuples of several lengths")
        return _sequence(first, [joined(some) for some in zip(*batches, strict=True)])
    if isinstance(first, list):
        return [item for b in batches for item in b]
    raise ConfigError(
        f"{type(first).__name__} of several parts cannot be joined to a batch; return "
        f"tensors, or lists with one item for each sample"
    )


def _mapping(like: Any, items: dict[Any, Any]) -> Any:
    if isinstance(like, MutableMapping):
        clone = copy.copy(like)
        clone.update(items)
        return clone
    try:
        return type(like)(items)
    except TypeError:
        return items


def _sequence(like: Any, items: list[Any]) -> Any:
    if hasattr(like, "_fields"):  # a named tuple
        return type(like)(*items)
    try:
        return type(like)(items)
    except TypeError:
        return items if isinstance(like, list) else tuple(items)
