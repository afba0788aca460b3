"""Confidence bounds on a mean of losses, from a sample of them.

For wrong or right answers the bounds are those of Clopper and Pearson (Biometrika 26,
1934): with x wrong of n, the upper bound is the p at which P(Binomial(n, p) <= x) is
1 - confidence. For losses between 0 and 1 they are those of Hoeffding (1963), in the
form with the Kullback-Leibler divergence, which need no distribution.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS = 60  # of a bisection: exact to the last bit of a float


def upper(losses: np.ndarray, confidence: float = 0.95) -> float:
    """Returns a number above the mean loss with probability `confidence`; 1 for none.

    Args:
        losses: a sample; each loss is between 0 and 1.
        confidence: the probability with which the bound holds.
    """
    total, count = float(losses.sum()), len(losses)
    if count == 0 or total >= count:
        return 1.0
    if total == int(total) and bool(((losses == 0) | (losses == 1)).all()):
        return clopper_pearson(int(total), count, confidence)
    mean, room = total / count, math.log(1 / (1 - confidence)) / count
    return _bisect(lambda p: _divergence(mean, p) < room, mean, 1.0)


def clopper_pearson(wrong: int, count: int, confidence: float = 0.95) -> float:
    """Returns the upper bound on the share of wrong answers.

    Args:
        wrong: the number of wrong answers.
        count: the number of answers.
        confidence: the probability with which the bound holds.
    """
    if wrong >= count:
        return 1.0
    logs = _log_choose(count, wrong)

    def likely(p: float) -> bool:
        k = np.arange(wrong + 1)
        terms = logs + k * math.log(p) + (count - k) * math.log1p(-p)
        top = terms.max()
        tail = top + math.log(float(np.exp(terms - top).sum()))
        return bool(tail > math.log1p(-confidence))

    return _bisect(likely, wrong / count, 1.0)


def fewest(error: float, confidence: float = 0.95) -> int:
    """Returns how many answers without a wrong one show a share of at most `error`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-error))


def _log_choose(count: int, upto: int) -> np.ndarray:
    k = np.arange(upto, dtype=float)
    steps = np.log(count - k) - np.log(k + 1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _divergence(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + (1 - a) * math.log((1 - a) / (1 - b))


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """Returns the largest p in [low, high] for which `below(p)` holds."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if 0 < middle < 1 and below(middle):
            low = middle
        else:
            high = middle
    return high
