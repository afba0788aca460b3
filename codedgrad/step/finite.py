"""What becomes of passes whose loss or gradient is NaN or infinite.

On the CPU such a pass is found before its row is sent. A device's flags are not waited
for: the row goes out, with the flag in its tail, and all workers see in the decoded sum
of the step that some row had it. Only then does a worker read its own flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.row.payload import Payload

LOSS_OR_GRADIENT = "loss or gradient"
_MEAN_OF_NOTHING = (
    "If it is a mean over nothing (all labels ignored), let the loss function return "
    "(loss, weight) with weight 0. Else: "
)


class NonFinite:
    """Counts, or refuses, what is not finite.

    Attributes:
        count: passes with NaN or Inf that were let through on this worker.
        waits: whether every pass waits for its flag, see `codedgrad.step.hooks`.
    """

    def __init__(
        self,
        payload: Payload,
        place: Callable[[int, int], str],
        *,
        refuse: bool,
        refuse_sum: bool,
        waits: bool,
    ) -> None:
        """Begin with none.

        Args:
            payload: of the rows.
            place: says in words where a step's pass of a node is.
            refuse: whether a loss or gradient that is not finite ends the job.
            refuse_sum: whether a decoded sum that is infinite does.
            waits: see the attribute.
        """
        self.count, self.waits = 0, waits
        self._payload, self._place = payload, place
        self._refuse, self._refuse_sum = refuse, refuse_sum
        self._flags: list[tuple[Tensor, int]] = []  # of this step's passes, by node

    def begin(self) -> None:
        """Forget the flags of the step before."""
        self._flags = []

    def note(self, flag: Tensor, node: int) -> None:
        """Keep a device's flag for the pass of a node; nobody waits for it."""
        self._flags.append((flag, node))

    def report(self, suspect: str, step: int, node: int) -> None:
        """Count that the loss or gradient of a micro-batch is not finite.

        Raises:
            NonFiniteError: such values are to be refused.
        """
        self.count += 1
        if self._refuse:
            wire = self._payload.layout.wire
            as_sent = "" if wire == "float32" else f" in {wire}, in which it is sent"
            empty = "" if "loss" not in suspect else _MEAN_OF_NOTHING
            raise NonFiniteError(
                f"the {suspect} of {self._place(step, node)} is not finite{as_sent}. "
                f"{empty}Lower the learning rate or clip; to go on regardless (e.g. "
                f'with GradScaler): CodedGradient(..., on_nonfinite="continue")'
            )

    def check_sum(self, total: Tensor, tail: NDArray[Any], step: int) -> None:
        """Refuse a decoded sum that is not finite, as far as that is known for free.

        All workers do so: where a device's flag is in it, and, with a float16 wire,
        where it is beyond the range of that type.

        Args:
            total: the sum, where the model is.
            tail: its tail, on the CPU.
            step: the step's number.

        Raises:
            NonFiniteError: the message names the step.
        """
        if self._payload.nonfinite(tail):
            for flag, node in self._flags:
                if float(flag) != 0.0:  # it was set long ago
                    self.report(LOSS_OR_GRADIENT, step, node)
            if self._refuse:
                raise NonFiniteError(
                    f"the {LOSS_OR_GRADIENT} of a pass of step {step} is not finite, "
                    f"on another worker, whose message says which one"
                )
        layout = self._payload.layout
        if layout.wire != "float16" or not self._refuse_sum:
            return
        gradients = total[: layout.gradients]
        finite = bool(torch.isfinite(gradients).all())
        weight = self._payload.weights.of(tail)
        if finite and weight is not None and layout.own_type == torch.float16:
            # Each worker will divide by the weight, and round to the parameters' type.
            finite = bool((gradients / weight).half().isfinite().all())
        if not finite:
            raise NonFiniteError(
                f"the summed gradient of step {step} is beyond 65504, the largest "
                f'float16. Use wire="bfloat16", or scale the loss down'
            )
