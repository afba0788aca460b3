"""What lies where in a row's buckets, and a gradient as a row holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.row.layout import Layout

TAIL = -1
METRICS = -2


class Span(NamedTuple):
    """A run of elements inside a bucket that belong to one parameter, or to the tail.

    `parameter` is the parameter's index, -1 for the tail or -2 for what is at its end,
    the metrics and a flag; `first` is the first element, counted from where the
    parameter, or the tail, begins.
    """

    parameter: int
    first: int
    length: int


def spans(layout: Layout) -> list[list[Span]]:
    """Returns for every bucket what lies in it, in order and without gaps."""
    starts = layout.bucket_starts
    found: list[list[Span]] = [[] for _ in starts[1:]]
    places = [
        (layout.offset(i), layout.parameters[i].numel(), i)
        for i in range(len(layout.parameters))
    ]
    measures = layout.metric_area.start
    places.append((layout.gradients, measures, TAIL))
    metrics = layout.count - layout.gradients - measures
    places.append((layout.gradients + measures, metrics, METRICS))
    bucket = 0
    for offset, size, index in sorted(p for p in places if p[1]):
        at = offset
        while at < offset + size:
            while starts[bucket + 1] <= at:
                bucket += 1
            end = min(offset + size, starts[bucket + 1])
            first = layout.gradients if index == METRICS else offset
            found[bucket].append(Span(index, at - first, end - at))
            at = end
    return found


def dense(layout: Layout, index: int) -> Tensor | None:
    """Returns a parameter's gradient in the row's type and memory order.

    It is a copy only where `p.grad` has another type or order, and None where the
    parameter has no gradient.

    Raises:
        ConfigError: the gradient is sparse.
    """
    g = layout.parameters[index].grad
    if g is None:
        return None
    if g.layout != torch.strided:
        raise ConfigError(
            f"parameter {layout.names[index]!r} has a sparse gradient ({g.layout}), "
            f"which cannot be coded; use sparse=False in its embedding"
        )
    strides = layout.strides(index)
    if g.dtype == layout.dtype and alike(g, strides):
        return g.detach()
    out = torch.empty_strided(g.shape, strides, dtype=layout.dtype, device=g.device)
    return out.copy_(g.detach())


def alike(gradient: Tensor, strides: tuple[int, ...]) -> bool:
    """Returns whether a gradient's elements lie in memory as these strides say.

    What the stride of a dimension of one element is, does not matter: torch gives it
    several values.
    """
    if gradient.layout != torch.strided or gradient.dim() != len(strides):
        return False
    sides = zip(gradient.shape, gradient.stride(), strides, strict=True)
    return all(size == 1 or own == wanted for size, own, wanted in sides)
