"""Metrics beside the loss: how rows carry them so that counts are exact.

The last `ELEMENTS` elements of a row are not multiplied by the pass's weight:

    [ digest of the names | weight | metric 0 | metric 1 | ... | metric 15 ]

- The digest is a word of `checks.BITS` bits, in two elements a bit. In the decoded sum
  a bit is disputed if two passes had metrics of other names, or if only one had any
  (see `codedgrad.row.checks`). The word of a pass without metrics is 0.
- The weight W_g is the number of samples of the pass, or the weight that the loss
  function gave.
- A metric is W_g x_g where x_g is a mean over the pass, and x_g where it is a count.

The step's value is sum_g W_g x_g / sum_g W_g, or sum_g x_g. Each number travels as
`LIMBS` elements,

    a 2^24 + b 2^12 + c + d 2^-12 + r        a, b, c, d integers below 2^12

and sums of integers are exact in fp32 for up to 4096 passes, in whatever order they are
added. So a count below 2^36 has the same bits whoever computed what, and so has a mean
over samples that counts something: k / n of a pass, rounded, times n is k again (see
`rounded`). What is left of other numbers, r, is added up in the row's type.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codedgrad.row import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

MOST = 16
_SCALES = (float(1 << 24), float(1 << 12), 1.0, 2.0**-12)
LIMBS = len(_SCALES) + 1
ELEMENTS = checks.ELEMENTS + LIMBS * (MOST + 1)
_LARGEST = float(1 << 36)  # from here on a number is r alone


class Sums(NamedTuple):
    """What a decoded sum says of the metrics.

    Attributes:
        words: the digests of the names, bit by bit; None: no pass of the step had
            anything to say.
        weight: the sum of the weights.
        values: the sums of all places for metrics.
    """

    words: checks.Reading | None
    weight: float
    values: list[float]


def rounded(value: float, eps: float) -> float:
    """Returns the integer that a number is within its precision, or else the number.

    Args:
        value: the number.
        eps: the relative precision with which it was computed.
    """
    if not math.isfinite(value):
        return value
    nearest = float(round(value))
    return nearest if abs(value - nearest) <= eps * abs(value) else value


def limbs(value: float) -> list[float]:
    """Returns the elements of one number; their sum, scaled, is the number."""
    if not abs(value) < _LARGEST:  # NaN, too
        return [0.0] * len(_SCALES) + [value]
    found = []
    for scale in _SCALES:
        digit = float(math.trunc(value / scale))
        found.append(digit)
        value -= digit * scale
    return [*found, value]


def elements(
    word: int, weight: float = 0.0, values: Sequence[float] = ()
) -> NDArray[np.float64]:
    """Returns the elements [ELEMENTS] of one pass.

    Args:
        word: the digest of the metrics' names; 0 where the pass has none.
        weight: of the pass.
        values: of the metrics, multiplied by the weight where they are means.
    """
    out = np.zeros(ELEMENTS)
    out[: checks.ELEMENTS] = checks.elements(word)
    numbers = [limb for value in (weight, *values) for limb in limbs(value)]
    out[checks.ELEMENTS : checks.ELEMENTS + len(numbers)] = numbers if word else 0.0
    return out


def none(area: NDArray[Any] | Tensor) -> bool:
    """Returns whether no pass of a decoded sum had metrics, for certain; it is quick.

    Args:
        area: the elements [ELEMENTS] of a decoded sum, on the CPU.
    """
    return checks.says(area[: checks.ELEMENTS], 0)


def read(area: NDArray[Any] | Tensor) -> Sums:
    """Reads the elements [ELEMENTS] of a decoded sum, on the CPU."""
    words = checks.read(area[: checks.ELEMENTS])
    table = np.asarray(area[checks.ELEMENTS :], np.float64).reshape(MOST + 1, LIMBS)
    # Exact but for the last addition: 2^12 passes of 2^36 with 12 bits after the point.
    sums = (table[:, :-1] * np.array(_SCALES)).sum(axis=1) + table[:, -1]
    weight, *values = sums.tolist()
    return Sums(words, weight, values)
