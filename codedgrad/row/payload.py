"""The payload of a model: all that a pass computes for others, and the way back.

    pass -> p.grad, buffers, loss -> Tail.fill -> encoder -> row        (writer.py)
    decoded sum -> scatter -> p.grad, buffers, loss

`Layout` says where things lie in a row, `Buffers` remembers the values of the model's
buffers before the step, and `Tail` holds what of a pass is not a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.job.settings import ExchangeSettings
from codedgrad.row.buffers import Buffers
from codedgrad.row.layout import Layout
from codedgrad.row.scatter import scatter
from codedgrad.row.tail import Tail
from codedgrad.row.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_DEFAULTS = ExchangeSettings()


class Payload:
    """What travels of one model, on one worker; it knows no network.

    Attributes:
        layout: where everything lies in a row.
        buffers: the values of the model's buffers before the step's passes.
        tail: what of the last pass is not a gradient.
        weights: weighs passes whose loss function says how much they weigh.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        named_buffers: Iterable[tuple[str, Tensor]] = (),
        *,
        workers: int = 1,
        settings: ExchangeSettings = _DEFAULTS,
    ) -> None:
        """Lays out the rows of a model; the arguments are those of `Layout`.

        Raises:
            ConfigError: see `Layout`.
        """
        self.layout = Layout(
            named_parameters, named_buffers, workers=workers, settings=settings
        )
        self.buffers = Buffers(self.layout)
        self.tail = Tail(self.layout, self.buffers)
        self.weights = Weights(self.layout)

    def scatter(self, total: Tensor, tail: Tensor | None = None) -> Tensor:
        """Moves a decoded sum to where it belongs, see `codedgrad.row.scatter`.

        Args:
            total: the decoded sum [count], where the model is.
            tail: the part of `total` after the gradients, on the CPU; None: it is read
                from `total`, which waits for a device.

        Returns:
            The mean loss of the batch, a scalar.

        Raises:
            MismatchError: some passes gave a weight and some did not.
        """
        if tail is None:
            tail = total[self.layout.gradients :]
        tail = self.weights.divide(total, tail)
        return scatter(self.layout, self.buffers, total, tail)

    def nonfinite(self, tail: Tensor) -> bool:
        """Returns whether a device found NaN or Inf in a row of the step.

        Args:
            tail: of the decoded sum, on the CPU.
        """
        return bool(tail.numpy()[self.layout.nonfinite_place] != 0.0)

    def moved(self, tail: Tensor) -> bool:
        """Returns whether a pass of the step changed what does not travel.

        Args:
            tail: of the decoded sum, on the CPU.
        """
        return bool(tail.numpy()[self.layout.moved_place] != 0.0)
