"""What is called while one pass runs, as methods of one object."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from codedgrad.errors import NonFiniteError
from codedgrad.step.boundaries import Abandoned

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.step.passes import Passes, RowItem


class PassHooks:
    """Hears of module boundaries (`Visitor`) and of buckets (`LeafListener`)."""

    def __init__(self, passes: Passes, item: RowItem, node: int) -> None:
        """Watch the pass of tree node `node`, which is `item` or a piece of it."""
        self._passes = passes
        self._item = item
        self._needless = item.needless
        self._node = node
        self._injector, self._pace = passes.injector, passes.pace
        self._reported = False
        self._suspect = "gradient"

    def check(self) -> None:
        """Abandon the pass if nobody needs its item any more.

        Raises:
            Abandoned: the item is needless.
        """
        self._passes.visits += 1
        if self._needless():
            raise Abandoned

    def leave_if_needless(self) -> None:
        """Abandon the pass if nobody needs its item any more, between two samples.

        Raises:
            Abandoned: the item is needless.
        """
        if self._needless():
            raise Abandoned

    def visit(self) -> None:
        """At a module boundary: keep pace, look whether to go on, be slow if told to.

        Raises:
            Abandoned: see `check`.
        """
        if self._pace is not None:
            self._pace.visit()
        self.check()
        if self._injector is not None:
            self._injector.boundary(self.check)

    def __enter__(self) -> None:
        """Begin the forward and the backward."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Abandon a pass that failed, if its item may fail.

        Raises:
            Abandoned: the item may fail, see `RowItem.failed`.
        """
        if isinstance(error, Exception) and self._item.failed(error):
            raise Abandoned from error

    def loss_computed(self, loss: Tensor) -> float | Tensor:
        """Returns the loss, looked at before anything of the gradient is sent.

        On a device the loss is not waited for: it travels with the last bucket, whose
        check sees it.

        Raises:
            NonFiniteError: the loss is NaN or infinite, and that is to be refused.
        """
        if loss.device.type != "cpu":
            self._suspect = "loss or gradient"
            return loss.detach()
        value = float(loss.detach())
        if not math.isfinite(value):
            self._report(f"loss ({value})")
        return value

    def bucket_checked(self, finite: bool) -> None:
        """Hear whether a bucket of the leaf is finite, before it is sent.

        Raises:
            NonFiniteError: it is not, and that is to be refused.
        """
        if not self._reported and not finite:
            self._report(self._suspect)

    def bucket_ready(self, bucket: int) -> None:
        """Pass on to the item that a bucket of its row is final."""
        self._item.bucket_ready(bucket)

    def _report(self, suspect: str) -> None:
        self._reported = True
        if self._item.failed(NonFiniteError(f"the {suspect} is not finite")):
            raise Abandoned
        self._passes.report_nonfinite(suspect, self._item.context.step, self._node)
