"""What is called while one pass runs, as methods of one object."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from codedgrad.errors import NonFiniteError
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.finite import LOSS_OR_GRADIENT

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.step.passes import Passes, RowItem


class PassHooks:
    """Hears of module boundaries (`Visitor`) and of buckets (`LeafListener`).

    Attributes:
        node: the tree node of the pass.
    """

    def __init__(self, passes: Passes, item: RowItem, node: int) -> None:
        """Watch the pass of tree node `node`, which is `item` or a piece of it."""
        self._passes = passes
        self._item = item
        self._needless = item.needless
        self.node = node
        self._injector, self._pace = passes.injector, passes.pace
        self._reported = False

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
        self._passes.visits += 1  # as `check`, which would be one call more
        if self._needless():
            raise Abandoned
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

        On a device the loss is not waited for: it travels with the last bucket, and
        the flag of the row is about it, too.

        Raises:
            NonFiniteError: the loss is NaN or infinite, and that is to be refused.
        """
        if not self._passes.on_host:
            return loss.detach()
        value = float(loss.item())
        if not math.isfinite(value):
            self._report(f"loss ({value})")
        return value

    def bucket_checked(self, finite: bool) -> None:
        """Hear whether a bucket of the leaf is finite, before it is sent.

        Raises:
            NonFiniteError: it is not, and that is to be refused.
        """
        if not self._reported and not finite:
            self._report("gradient")

    def row_flagged(self, flag: Tensor) -> None:
        """Hear of a device's flag, which is not 0 where the row is not finite.

        It is waited for where a pass may fail without ending the job, and where the
        step may end with an estimate, in which a flag says nothing. Elsewhere all
        workers see it in the decoded sum (`codedgrad.step.finite`).

        Raises:
            NonFiniteError: the row is not finite, and that is to be refused.
        """
        nonfinite = self._passes.nonfinite
        if not (self._item.may_fail or nonfinite.waits):
            nonfinite.note(flag, self.node)
        elif not self._reported and float(flag) != 0.0:
            self._report(LOSS_OR_GRADIENT)

    def bucket_ready(self, bucket: int) -> None:
        """Pass on to the item that a bucket of its row is final."""
        self._item.bucket_ready(bucket)

    def _report(self, suspect: str) -> None:
        self._reported = True
        if self._item.failed(NonFiniteError(f"the {suspect} is not finite")):
            raise Abandoned
        step = self._item.context.step
        self._passes.nonfinite.report(suspect, step, self.node)
