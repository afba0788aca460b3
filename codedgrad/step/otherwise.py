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


@contextmanager
def other_values(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, parameters have random values of the same size; then their own, all bits.

    These are the last ones of a very large model, which are close to its answers.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    torch.clear_autocast_cache()  # it holds casts of the parameters, known by address
    left = _MOST_BYTES
    try:
        for p in reversed(parameters):
            left -= p.nbytes if _can_change(p) else 0
            if _can_change(p) and left >= 0:
                values = p.data  # no version counts what is written to these
                kept.append((values, values.clone()))
                values.copy_(_like(values))
        yield
    finally:
        torch.clear_autocast_cache()
        for values, copy in reversed(kept):  # two may share their memory
            values.copy_(copy)


def _can_change(p: Tensor) -> bool:
    plain = p.layout is torch.strided and type(p.data) is Tensor and not p.is_meta
    return plain and p.is_floating_point() and p.numel() > 0


def _like(values: Tensor) -> Tensor:
    """Returns random numbers of about the same size; of some size in place of zeros."""
    size = values.float().square().mean().sqrt()
    least = values.shape[-1] ** -0.5 if values.dim() else 1.0
    size = torch.where(size > 0.0, size, torch.full_like(size, least))
    noise = torch.randn(values.shape, device=values.device)
    return (size * noise).to(values.dtype)
