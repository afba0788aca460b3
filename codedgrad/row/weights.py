"""Weights that loss functions return: how rows carry them, and the division by them.

Where a loss function returns (loss, weight), micro-batch g has the leaf weight

    v_g = scale * w_g / samples of the step

in place of its share of the samples. Two elements of the tail say which it was: v * 1
and v * 0 where a weight was given, v * 0 and v * 1 where none was. In the decoded sum
they are the step's weight V = sum_g v_g and 0, and every worker divides the sum by V.
Or they are 0 and 1, and nothing is divided. If neither is zero, some passes gave a
weight and others did not. This is exact, and the same on every worker.

`scale` is a power of two that keeps V near 1, for the range of narrow wires. Each
worker derives it from the decoded V of the step before, so all have the same one. No
bit depends on it, unless a number leaves the range of its type.

Before the first step with weights nobody knows V, and float16 has no room to guess.
On such a wire the passes of that step only measure it: their scale is so small that no
gradient overflows, V is right all the same, for the tail travels in 32 bits, and they
set the moved flag of their rows, so that all compute the step again.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from codedgrad.errors import MismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.row.layout import Layout

log = logging.getLogger("codedgrad")

_MEASURING = 2.0**-60  # a scale far from both ends of the range of float32


class Weights:
    """Weighs the passes of a step, and divides its sum by their weight.

    Attributes:
        measuring: whether the scale is still to be found, see above.
    """

    def __init__(self, layout: Layout) -> None:
        """Begin without knowing how much steps weigh."""
        self._place = layout.weight_place
        self.measuring = layout.wire == "float16"
        self._scale = _MEASURING if self.measuring else 1.0
        self._said = False

    def go_on_from(self, before: Weights) -> None:
        """Take over the scale of an earlier laying out, on all workers alike."""
        if self.measuring and not before.measuring:
            self.measuring, self._scale = False, before._scale

    def measure(self, tail: NDArray[Any]) -> bool:
        """Let a step that is computed again tell the scale, if it is not known.

        Args:
            tail: of the step's decoded sum, on the CPU.

        Returns:
            Whether the step has told it.
        """
        weighted = self.of(tail)
        if not self.measuring or weighted is None:
            return False
        self.measuring = False
        self._scale *= 2.0 ** -math.frexp(weighted)[1]
        return True

    def of(self, tail: NDArray[Any]) -> float | None:
        """Returns the weight of a step; None: its loss function gave none.

        Args:
            tail: of the step's decoded sum, on the CPU.
        """
        return float(tail[self._place]) or None

    def leaf(self, weight: float, samples: int) -> float:
        """Returns the leaf weight of a pass, in a step of so many samples."""
        return self._scale * weight / samples

    def divide(self, total: Tensor, tail: NDArray[Any]) -> NDArray[Any]:
        """Divides a decoded sum by the step's weight, if the step has one.

        Args:
            total: the sum [count], which is changed.
            tail: its tail, on the CPU; it may share memory with `total`.

        Returns:
            The tail, divided.

        Raises:
            MismatchError: some passes gave a weight and some did not.
        """
        weighted, plain = tail[self._place : self._place + 2].tolist()
        if weighted == 0.0:
            if plain == 0.0 and not self._said:
                self._said = True
                log.warning(
                    "all weights of a step were 0: it has no gradient, p.grad stays as "
                    "it was, and its loss is given as 0 (this is said once)"
                )
            return tail
        if plain != 0.0:
            raise MismatchError(
                "the loss function returned (loss, weight) in some passes of the step "
                "and a loss alone in others. Return a weight always, 0 where there is "
                "nothing to learn from, or never"
            )
        tail = tail / weighted
        total.div_(weighted)
        self._scale *= 2.0 ** -math.frexp(weighted)[1]
        return tail
