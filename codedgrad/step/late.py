"""The passes of a worker that is late in an approximate step.

A worker that is late goes on with its pass for a while instead of abandoning it,
because its row teaches the decoder and refreshes the owners' memory. It also sends the
part of its work that is done as soon as it notices that others are ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.step.context import StepContext


class LatePass:
    """Decides what a worker does that is late."""

    def __init__(self, code: Code, window: int, *, active: bool) -> None:
        """Begin; with `active` False (exact steps) every late pass is abandoned."""
        self._tree = code.tree
        self._limit = max(1, 3 * window // 4)  # others wait at a whole window
        self._active = active
        self._go_on = False
        self._ready: list[tuple[int, Tensor]] = []

    def needless(self, exchange: Exchange, step: int) -> bool:
        """Returns whether the pass may be abandoned.

        A worker that was late in the step before, too, is slow rather than held up
        once: it finishes its pass if that takes at most three quarters of a window.
        """
        if not exchange.done(step):
            return False
        return not (self._active and self._go_on) or exchange.done(step + self._limit)

    def over(self, *, abandoned: bool) -> None:
        """Note the end of the own passes.

        A worker that has finished a pass late is to catch up first: it abandons the
        next one.
        """
        self._go_on = abandoned
        self._ready = []

    def offer(self, context: StepContext, node: int, value: Tensor) -> None:
        """Keep the finished row of `node`; send what is kept if others wait for it.

        Args:
            context: the step.
            node: a node of the summation tree below the own item's.
            value: its row [count], which stays until a node above it is finished.
        """
        if not self._active:
            return
        tree, exchange, step = self._tree, context.exchange, context.step
        # The nodes that `node` is made of need not be sent by themselves any more.
        self._ready = [
            (n, v)
            for n, v in self._ready
            if not tree.start[node] <= tree.start[n] < tree.stop[node]
        ]
        self._ready.append((node, value))
        if exchange.done(step) or not exchange.past_half(step):
            return
        for ready, row in self._ready:
            copy = exchange.row_buffer()
            copy.tensor.copy_(row)
            exchange.post(step, ready, copy)
        self._ready = []
