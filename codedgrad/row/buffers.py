"""A model's buffers around the passes of a step: remembered, restored, changed.

Buffers (batch-norm statistics, counters) are decoded like gradients. With b the values
before the step, b_j those after the pass over micro-batch j, and w_j its weight, every
pass begins from b, row j carries w_j (b_j - b), and the step ends with

    b + sum_j w_j (b_j - b)          rounded to the nearest integer for counters,

which is the weighted mean of the b_j, the same on every worker.

For contiguous buffers on the CPU, each of these operations is one call of a kernel for
all buffers (csrc/ops/cpu/encode.h), because a model can have hundreds of small buffers
and an operation of torch on each costs microseconds. Other buffers use torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from codedgrad.errors import ConfigError
from codedgrad.ops.library import NAMES, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from codedgrad.row.layout import Layout

# The types of buffers that the kernels know, by the letter that stands for each.
_LETTERS = {torch.float32: "f", torch.float64: "d", torch.int64: "q"}


class Buffers:
    """The buffers of one model, with their values from before the step's passes.

    Attributes:
        remembered: whether `remember` has been called.
    """

    def __init__(self, layout: Layout) -> None:
        """Allocates memory for the values."""
        self.remembered = False
        self._buffers = layout.buffers
        self._sizes = [b.numel() for b in layout.buffers]
        self._gradients, self._area = layout.gradients, layout.change_area
        self._before = [b.detach().clone() for b in layout.buffers]
        self._type = NAMES[layout.dtype]
        # Address, size and type of each copy, for the kernels; None: torch is used.
        self._copies: list[tuple[int, int, str]] | None = None
        if all(
            b.dtype in _LETTERS and b.is_contiguous() and b.device.type == "cpu"
            for b in layout.buffers
        ):
            self._copies = [
                (b.data_ptr(), b.numel(), _LETTERS[b.dtype]) for b in self._before
            ]

    def __len__(self) -> int:
        """Returns the number of buffers."""
        return len(self._buffers)

    @property
    def before(self) -> list[Tensor]:
        """The values that `remember` has noted."""
        return self._before

    def remember(self) -> None:
        """Notes the buffers' values, before the first pass of a step."""
        self.remembered = True
        if self._buffers and self._copies is not None:
            kernels("_ops").copies(self._for_kernels(), False)
        elif self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def restore(self) -> None:
        """Puts the noted values back, so that every pass begins from the same ones."""
        if self._buffers and self._copies is not None:
            kernels("_ops").copies(self._for_kernels(), True)
        elif self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._before)

    def shaped(self, changes: Tensor) -> list[Tensor]:
        """Returns views of `changes`, one per buffer, in the buffers' shapes."""
        parts = changes.split(self._sizes)
        return [p.view(b.shape) for p, b in zip(parts, self._buffers, strict=True)]

    def write_changes(self, out: Tensor, shaped: Sequence[Tensor]) -> None:
        """Writes what has been added to every buffer since `remember`.

        Args:
            out: elements for all buffers, one buffer after the other.
            shaped: `self.shaped(out)`, which callers keep to save the time.
        """
        if not self._buffers:
            return
        if self._copies is not None:
            place = out.data_ptr()
            kernels("_ops").changes(self._for_kernels(), self._type, place, True)
            return
        with torch.no_grad():
            for change, now, before in zip(
                shaped, self._buffers, self._before, strict=True
            ):  # an equal value has not changed, although inf - inf would be NaN
                change.copy_(torch.where(now == before, 0, now - before))

    def apply(self, total: Tensor) -> None:
        """Sets every buffer to its noted value plus the change in a decoded sum.

        Args:
            total: the decoded sum of a step [count], where the model is.
        """
        if not self._buffers:
            return
        tail = total[self._gradients :]
        if self._copies is not None:
            place = tail.data_ptr()
            kernels("_ops").changes(self._for_kernels(), self._type, place, False)
            return
        parts = tail[self._area].split(self._sizes)
        with torch.no_grad():
            changes = [
                (part if buffer.is_floating_point() else part.round())
                .view(buffer.shape)
                .to(buffer.dtype)
                for part, buffer in zip(parts, self._buffers, strict=True)
            ]
            torch._foreach_copy_(self._buffers, self._before)
            torch._foreach_add_(self._buffers, changes)

    def _for_kernels(self) -> list[tuple[int, int, int, str]]:
        """Returns address now, address of the copy, size and type of every buffer.

        The addresses are asked for in every call, because a model may have moved a
        buffer to other memory (`buffer.data = ...`).
        """
        assert self._copies is not None
        found = []
        for b, (before, size, letter) in zip(self._buffers, self._copies, strict=True):
            if b.numel() != size or _LETTERS.get(b.dtype) != letter:
                raise ConfigError(
                    f"a buffer has become {b.numel()} x {b.dtype} since CodedGradient "
                    f"was made; make a new one where a model changes"
                )
            found.append((b.data_ptr(), before, size, letter))
        return found
