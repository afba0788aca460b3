"""The tail of a row: what a pass leaves behind that is not a gradient.

    [ buffer changes | used flags | checks | moved flag | loss | weights | padding |
      metrics | nonfinite flag ]

`Layout` says where these lie. A pass fills the tail, and the encoder writes it into the
row's last bucket, multiplied by the pass's weight like everything else, but for the
metrics (`codedgrad.row.metrics`), which are written as they are. In the decoded
sum of a step, the loss is therefore the batch's mean loss, and a parameter was used if
the sum of its flags is not zero. The nonfinite flag is 0 here: encoders for devices add
it to the row, because they know it when the row is written, and the host does not. (On
the CPU such a pass is found before its row is sent.)

No copy to a device waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.ops import objects
from codedgrad.row import checks, devices, metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from codedgrad.row.buffers import Buffers
    from codedgrad.row.layout import Layout


class Tail:
    """The tail of the last pass, before it is multiplied by the pass's weight.

    Attributes:
        values: the elements, in the layout's type and on the model's device.
        weighted: whether the loss function gave the pass its weight; to be set before
            `fill` (see `codedgrad.row.weights`).
        moved: whether the pass has changed a tensor that does not travel; the pass
            sets it before `fill`.
        measured: whether the tail holds metrics, see `measure`.
    """

    def __init__(self, layout: Layout, buffers: Buffers) -> None:
        """Allocates the tail's memory, which all passes use."""
        self._parameters, self._buffers = layout.parameters, buffers
        self.values = torch.zeros(
            layout.count - layout.gradients, dtype=layout.dtype, device=layout.device
        )
        self._loss_place, self._weight_place = layout.loss_place, layout.weight_place
        self.weighted = self._noted = False
        self.moved = False
        self._moved_before, self._moved_place = False, layout.moved_place
        # An assignment to an element takes numpy 0.1 us, and torch 15.
        self._fast_values = self.values.numpy() if layout.on_host else self.values
        self._used = [False] * len(layout.parameters)
        self._flags = self.values[layout.used_area]  # holds what `_used` says
        self._checks = self.values[layout.check_area]
        self._fast_checks = self._checks.numpy() if layout.on_host else None
        self._changes = self.values[layout.change_area]
        self._shaped_changes = buffers.shaped(self._changes)
        self._note_weighted()
        self._metrics = self.values[layout.metric_area]
        self.measured = True
        self.measure(None)

    def measure(self, elements: NDArray[Any] | None) -> None:
        """Notes the metrics of a pass.

        Args:
            elements: see `codedgrad.row.metrics.elements`; None: the pass has none.
        """
        if elements is None and not self.measured:
            return
        self.measured = elements is not None
        found = metrics.elements(0) if elements is None else elements
        devices.put(self._metrics, torch.from_numpy(found))

    def check(self, word: int | None, scales: NDArray[Any] | None = None) -> None:
        """Notes the check bits of the passes to come, see `codedgrad.row.checks`.

        Args:
            word: the bits; all passes of a step have the same ones. None: the passes
                to come say nothing.
            scales: see `checks.scales_of`; None: every bit counts 1.
        """
        elements = checks.elements(0 if word is None else word, scales)
        if word is None:
            elements[:] = 0.0
        if self._fast_checks is not None:
            self._fast_checks[:] = elements
        else:
            devices.put(self._checks, torch.from_numpy(elements))

    def fill(self, loss: float | Tensor, given_back: Sequence[bool] = ()) -> None:
        """Notes the tail of the pass that has just ended.

        Args:
            loss: the mean loss of the pass. A tensor is not waited for.
            given_back: for every parameter, whether the pass gave it a gradient that
                is encoded already and no longer in `p.grad`. Empty if none is.
        """
        used = objects.filled(self._parameters, "grad")
        if any(given_back):
            used = [u or g for u, g in zip(used, given_back, strict=True)]
        if used != self._used:
            self._used = used
            devices.put(self._flags, torch.tensor(used))
        self._buffers.write_changes(self._changes, self._shaped_changes)
        if self.moved != self._moved_before:  # almost never
            self._moved_before = self.moved
            self.values[self._moved_place] = float(self.moved)
        values = self.values if isinstance(loss, Tensor) else self._fast_values
        values[self._loss_place] = loss
        if self.weighted != self._noted:
            self._note_weighted()

    def _note_weighted(self) -> None:
        self._noted = self.weighted
        self._fast_values[self._weight_place] = float(self.weighted)
        self._fast_values[self._weight_place + 1] = float(not self.weighted)
