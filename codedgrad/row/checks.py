"""Check bits: a step shows whether all its micro-batches were computed alike.

Every worker has a word of `BITS` bits that describes the data of the step as this
worker sees it. Bit b travels in the tail of every micro-batch's row as two elements,

    w b        and        w (1 - b)          with w the micro-batch's weight.

In the decoded sum of a step, a bit in which all its micro-batches agree has exactly 0
in one of its two places, whatever the weights, the rounding and the order of the sum:
sums and multiples of zeros are zero. If neither is 0, somebody differs. Every worker
decodes the same sum, so all workers see it in the same step, without a message.

[Note: estimates] Where a step may end with an estimate, a slice of the sum may hold
something of earlier steps, whose words were others. Then the two elements of bit i are
multiplied by s_i, another number in every step (see `scales_of`). Only in a sum
of the step's own rows is the sum of the two elements of bit i the same multiple of s_i
for all i, and nothing is concluded from any other sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BITS = 24
ELEMENTS = 2 * BITS
ALL = (1 << BITS) - 1

_POWERS = 1 << np.arange(BITS)
# The elements [16] of every byte of a word; a look-up is ten times as fast as shifts.
_BYTES = np.stack([np.arange(256) >> i & 1 for i in range(8)], axis=1).astype(float)
_BYTES = np.stack([_BYTES, 1.0 - _BYTES], axis=2).reshape(256, 16)
_PRESENT = [row.tobytes() for row in _BYTES != 0.0]  # where a byte's are not zero
# With steps multiplied by square roots of primes, scales never come again.
_PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71]
_ROOTS = np.sqrt([*_PRIMES, 73, 79, 83, 89])
_ROUNDING = 2e-5  # of a sum of float32, relative
_LEAST = 1e-4  # of a sum; an estimate's share of other steps can seem to be less


class Reading(NamedTuple):
    """What a decoded sum says about the words of its micro-batches.

    Attributes:
        ones: the bits that are 1 in some micro-batch.
        zeros: the bits that are 0 in some micro-batch.
    """

    ones: int
    zeros: int

    @property
    def disputed(self) -> int:
        """The bits in which two micro-batches differ."""
        return self.ones & self.zeros


def scales_of(step: int) -> NDArray[np.float64]:
    """Returns the factors of a step's bits, 0.5 to 1.5; see [Note: estimates]."""
    return 0.5 + (step + 1) * _ROOTS % 1.0


def elements(word: int, scales: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Returns the elements [2 BITS] of a word, before they are multiplied by w."""
    out = _BYTES[[word & 255, word >> 8 & 255, word >> 16]].reshape(-1)
    return out if scales is None else out * np.repeat(scales, 2)


def says(area: NDArray[Any] | Tensor, word: int) -> bool:
    """Returns whether all micro-batches of a decoded sum had this word, for certain."""
    low, middle, high = word & 255, word >> 8 & 255, word >> 16
    wanted = _PRESENT[low] + _PRESENT[middle] + _PRESENT[high]
    return bool((np.asarray(area) != 0.0).tobytes() == wanted)


def read(
    area: NDArray[Any] | Tensor, scales: NDArray[Any] | None = None
) -> Reading | None:
    """Reads the check bits of a decoded sum.

    Args:
        area: the elements [2 BITS], on the CPU.
        scales: the factors with which the step's bits were sent.

    Returns:
        None if the sum says nothing, because it is an estimate or holds no row.
    """
    found = np.asarray(area).reshape(BITS, 2)
    if scales is None:
        present = np.abs(found) > 0.0  # False for NaN
    else:
        multiples = found.sum(axis=1) / scales
        usual = float(np.median(multiples))
        if not (np.abs(multiples - usual) <= _ROUNDING * usual).all():
            return None
        present = found > _LEAST * usual
    ones, zeros = (int(_POWERS[present[:, i]].sum()) for i in (0, 1))
    return Reading(ones, zeros) if ones | zeros == ALL else None
