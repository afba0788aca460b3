"""A model with other values for a while, to see what depends on them.

The weight of a loss is a function of the data: a number of tokens, say. One that
depends on the model's answers as well (a number of right ones) is a metric in the wrong
place. The code of a loss function does not tell which it is, and other values of the
parameters do.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST_BYTES = 1 << 30  # of the copies
_AT_ONCE = 1 << 22  # elements that are filled at once


@contextmanager
def other_values(parameters: Sequence[Tensor]) -> Iterator[bool]:
    """Inside, parameters have random values of the same size; then their own, all bits.

    These are the last ones of a very large model, which are close to its answers.

    Yields:
        Whether there was room for them. Where there was none, all have their own.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    torch.clear_autocast_cache()  # it holds casts of the parameters, known by address
    try:
        yield _changed(parameters, kept)
    finally:
        torch.clear_autocast_cache()
        _put_back(kept)


def _changed(parameters: Sequence[Tensor], kept: list[tuple[Tensor, Tensor]]) -> bool:
    left = _MOST_BYTES
    try:
        for p in reversed(parameters):
            left -= p.nbytes if _can_change(p) else 0
            if _can_change(p) and left >= 0:
                values = p.data  # no version counts what is written to these
                kept.append((values, values.clone()))
                _fill(values)
    except RuntimeError:  # the device is out of memory, say
        _put_back(kept)
        return False
    return True


def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    while kept:
        values, copy = kept.pop()  # the last one first: two may share their memory
        values.copy_(copy)


def _can_change(p: Tensor) -> bool:
    plain = p.layout is torch.strided and type(p.data) is Tensor and not p.is_meta
    return plain and p.is_floating_point() and p.numel() > 0


def _fill(values: Tensor) -> None:
    """Writes random numbers of about the same size; of some size in place of zeros.

    A large tensor is filled in parts, since there may be room for little else.
    """
    least = values.shape[-1] ** -0.5 if values.dim() else 1.0
    many = -(-values.numel() // _AT_ONCE)
    # Along the longest dimension, so that parts are small whatever the shape.
    longest = max(range(values.dim()), key=values.shape.__getitem__, default=0)
    parts = values.chunk(many, longest) if many > 1 else (values,)
    squares = sum(part.float().square().sum() for part in parts)
    size = (squares / values.numel()) ** 0.5
    size = torch.where(size > 0.0, size, torch.full_like(size, least))
    for part in parts:
        part.copy_(size * torch.randn(part.shape, device=part.device))
