"""What a rehearsal concludes from the loss of a batch and those of its pieces."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_EXACT, _NARROW = 1e-3, 5e-2  # relative differences that say nothing
_LEAST = 1e-6
_CLEARLY = 30.0  # times as far from one mean as from another
_WEIGHT = (
    "the loss function returned (loss, weight), and the weight is {} for a batch, and "
    "{} for the pieces of the same batch, which add up to {}. A weight is a count or "
    "a sum (of tokens, of the weights of samples), so that those of the pieces add "
    "up to the whole one. Give the sum in place of a mean; or, if it is an accuracy or "
    'another metric, return it in a dictionary: return loss, {{"accuracy": accuracy}}'
)
_ANSWERS = (
    "the loss function returned (loss, weight), and the weight of one batch is {} with "
    "the parameters as they are, and {} with others, while the loss is not seen to be "
    "a mean over what it counts. A weight is a function of the data alone, such as a "
    "number of tokens. If it is an accuracy, a number of right answers or another "
    'metric, return it in a dictionary: return loss, {{"accuracy": accuracy}}'
)


class Value(NamedTuple):
    """What a loss function has returned for a batch, or for a piece of it.

    Attributes:
        loss: the loss; NaN where the weight is 0.
        weight: its weight; None where it gave none.
        gradient: that of one small parameter; None where it is not known.
        narrow: whether the loss is of a type with few digits.
        random: whether random numbers were drawn.
    """

    loss: float
    weight: float | None
    gradient: Tensor | None
    narrow: bool
    random: bool


def means_as_weights(whole: Value, pieces: Sequence[Value]) -> tuple[bool, str]:
    """Returns whether anything can be concluded, and why weights are none, or "".

    The weights of pieces that are counts or sums add up to the whole one. Those that
    are means add up to about as many times the whole one as there are pieces. Small
    counts say nothing: one that is at least 1 by decree may be 1 everywhere.
    """
    given = [0.0 if v.weight is None else v.weight for v in pieces]
    if not whole.weight:
        return False, ""
    many, total = len(given), sum(given)
    if many < 2 or not 0.7 < total / whole.weight / many < 1.4:
        return True, ""
    integers = all(w.is_integer() for w in (whole.weight, *given))
    random = whole.random or any(v.random for v in pieces)
    if integers and (random or whole.weight <= 1.0):
        return False, ""
    shown = ", ".join(f"{w:.4g}" for w in given[:4]) + (" ..." if given[4:] else "")
    return True, _WEIGHT.format(f"{whole.weight:.4g}", shown, f"{total:.4g}")


def answers_as_weights(
    weights: tuple[float, float], values: Sequence[Value], sizes: Sequence[int]
) -> tuple[bool, str]:
    """Judges a weight that depends on the values of the parameters.

    It is right where the loss is a mean over what it counts (the samples that the model
    finds hard, say), so that the loss of a batch is the mean of those of its pieces by
    their weights. Where it is as well the mean by numbers of samples, nothing is known.

    Args:
        weights: of the batch, with the parameters' values and with others.
        values: of the batch and of its pieces; empty: they are not known.
        sizes: samples of each piece.

    Returns:
        Whether it is right for certain, and why it is wrong, or "".
    """
    shown = _ANSWERS.format(*(f"{w:.4g}" for w in weights))
    if not values:
        return False, shown
    first, *pieces = values
    known, text = difference(first, pieces, sizes)
    if text:
        return False, shown
    if not known:
        return False, ""
    if any(v.weight == 0.0 for v in pieces):  # whose samples do not count
        return True, ""
    by_weights = _misfit(first, [(float(v.weight or 0.0), v) for v in pieces])
    by_samples = _misfit(first, list(zip(map(float, sizes), pieces, strict=True)))
    if by_weights > _CLEARLY * max(by_samples, _LEAST):
        return False, shown
    return by_samples > _CLEARLY * max(by_weights, _LEAST), ""


def _misfit(whole: Value, pairs: Sequence[tuple[float, Value]]) -> float:
    """Returns how far a batch is from the mean of its pieces, relative to its size."""
    total = sum(w for w, _ in pairs)
    mean = sum(w * v.loss for w, v in pairs) / total
    found = abs(mean - whole.loss) / max(abs(whole.loss), _LEAST)
    gradients = [(w, v.gradient) for w, v in pairs if v.gradient is not None]
    if whole.gradient is not None and len(gradients) == len(pairs):
        rest = whole.gradient.clone()
        for w, gradient in gradients:
            rest -= gradient * (w / total)
        found = max(found, float(rest.norm()) / max(float(whole.gradient.norm()), 1e-6))
    return 0.0 if math.isnan(found) else found


def difference(
    whole: Value, pieces: Sequence[Value], sizes: Sequence[int]
) -> tuple[bool, str]:
    """Compares a batch with its pieces.

    Args:
        whole: of the batch.
        pieces: of its pieces.
        sizes: samples of each piece.

    Returns:
        Whether anything can be concluded, and how they differ, "" if they do not.
    """
    weights = [
        float(n) if v.weight is None else v.weight
        for n, v in zip(sizes, pieces, strict=True)
    ]
    pairs = [(w, v) for w, v in zip(weights, pieces, strict=True) if w > 0.0]
    total = sum(weights)
    if not pairs or whole.weight == 0.0:
        return False, ""
    mean = sum(w * v.loss for w, v in pairs) / total
    scale = max(abs(whole.loss), *(abs(v.loss) for _, v in pairs))
    limit = _NARROW if whole.narrow else _EXACT
    if not abs(mean - whole.loss) <= limit * scale + _LEAST:
        return True, (
            f"its loss is {whole.loss:.6g}, and the mean of those of {len(pairs)} "
            f"pieces is {mean:.6g}"
        )
    if not _same_gradient(whole, pairs, total, 10.0 * limit):
        return True, "a gradient is not the mean of those of the pieces"
    return True, ""


def _same_gradient(
    whole: Value, pairs: Sequence[tuple[float, Value]], total: float, limit: float
) -> bool:
    if whole.gradient is None or not bool(torch.isfinite(whole.gradient).all()):
        return True
    mean = torch.zeros_like(whole.gradient)
    scale = float(whole.gradient.norm())
    for w, value in pairs:
        if value.gradient is not None:
            mean += (w / total) * value.gradient
            scale = max(scale, float(value.gradient.norm()))
    distance = float((mean - whole.gradient).norm())
    return math.isnan(distance) or distance <= limit * scale + _LEAST
