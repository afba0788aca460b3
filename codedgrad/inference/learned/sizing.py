"""The widest network that a measured time allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from codedgrad.inference.learned.timing import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

Made = TypeVar("Made")
WIDTHS = (2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)


def widest(
    build: Callable[[int], tuple[Made, Callable[[], object]]],
    unit: Callable[[], object],
    limit: float,
    device: torch.device,
) -> tuple[Made | None, float]:
    """Returns the widest of what `build` makes within the limit, and the least share.

    Args:
        build: from a width to something, and a call of it.
        unit: what a share is a share of.
        limit: the largest share.
        device: where both compute.

    Returns:
        The widest, or None where even the narrowest takes longer; and the narrowest's
        seconds over those of `unit`.
    """
    best, least = None, float("inf")
    for width in WIDTHS:
        made, call = build(width)
        unit_s, own_s = seconds_of([unit, call], device)
        least = min(least, own_s / unit_s)
        if own_s > limit * unit_s:
            break
        best = made
    return best, least
