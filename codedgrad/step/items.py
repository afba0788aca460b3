"""Items of work: from a node of the summation tree to the rows that it completes.

A code gives each worker a list of items. The first `required` ones are its own, the
rest are for others who are late. While `Passes.row` computes an item it calls the
item's methods, so a reader finds here whatever happens beside the computing:

    needless()               at every module boundary: may the pass be abandoned?
    bucket_ready(bucket)     a bucket of the row is final: send it
    node_ready(node, value)  a part of the row is final: a late worker sends it
    post()                   the whole row is final
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect
from typing import TYPE_CHECKING

import torch

from codedgrad.codes.whole import helps_in_pieces
from codedgrad.step.state import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.codes import Code, Row
    from codedgrad.exchange.base import Exchange, RowBuffer
    from codedgrad.step.context import StepContext
    from codedgrad.step.late import LatePass
    from codedgrad.step.pieces import Trials


class WorkList:
    """One worker's items, and the rows that each of them completes.

    Attributes:
        nodes: the tree node of each item, in the order in which to take them.
        required: number of items that are the worker's own; they come first.
        listed: number of items that the code gives this worker. Behind them are all
            others, for the last resort; none where the code has no back-ups or does
            not send them as rows. These are micro-batches where helpers take such,
            else the own items of other workers, since a part of one that is computed
            as a whole would have other bits, and may be another function.
        rows: by item, the engine's number and the code's description of each row that
            the item completes.
        early: whether rows of own items are sent bucket by bucket during the backward.
    """

    def __init__(
        self, code: Code, worker: int, exchange: Exchange, *, overlap: bool
    ) -> None:
        """List the items of `worker`; with `overlap` own rows go out early."""
        self.code = code
        self.worker = worker
        self.nodes = list(code.work[worker])
        self.required = code.required[worker]
        self.early = overlap and not code.linear
        self.rows: list[list[tuple[int, Row | None]]] = [[] for _ in self.nodes]
        for i, row in enumerate(code.rows[worker]):
            self.rows[row.after].append((exchange.row_of(worker, i), row))
        self.listed = len(self.nodes)
        if self.listed > self.required and not code.linear:
            beyond = [node for node in _all_items(code) if node not in self.nodes]
            # Workers begin at different places, so that few compute the same.
            starts = [int(code.tree.start[node]) for node in beyond]
            first = bisect(starts, worker * code.parts // code.workers)
            self.nodes += beyond[first:] + beyond[:first]
            self.rows += [[(node, None)] for node in self.nodes[self.listed :]]


def _all_items(code: Code) -> list[int]:
    """Returns nodes that make up the batch, each of a size that helpers may take."""
    if helps_in_pieces(code):
        return list(range(code.parts))
    pairs = zip(code.work, code.required, strict=True)
    own = {node for nodes, required in pairs for node in nodes[:required]}
    return sorted(own, key=lambda node: int(code.tree.start[node]))


class Item(ABC):
    """One item of a worker's work in one step. Subclasses say when it is needless."""

    may_fail = False

    def __init__(self, work: WorkList, context: StepContext, index: int) -> None:
        """Take memory for the item's row."""
        self.context = context
        self._exchange, self._step = context.exchange, context.step
        self.index = index
        self.node = work.nodes[index]
        # A required item is abandoned only once its step is decoded: only then may
        # some buckets of a row have been sent and others never come.
        self.early = work.early and index < work.required
        self.buffer = context.exchange.row_buffer()
        self._rows = work.rows[index]
        self._linear = work.code.linear

    @property
    def out(self) -> Tensor:
        """The row to be written, [count], where the model is."""
        return self.buffer.tensor

    @abstractmethod
    def needless(self) -> bool:
        """Returns whether nobody needs this item any more."""

    def failed(self, error: Exception) -> bool:  # noqa: ARG002 (a default)
        """Returns whether a pass that failed is no more than an item given up."""
        return False

    def bucket_ready(self, bucket: int) -> None:
        """Send one bucket of the row, which will not change any more."""
        clock = Stopwatch()
        context = self.context
        for row_id, _ in self._rows:
            context.exchange.post_bucket(context.step, row_id, bucket, self.buffer)
        context.state.send_s += clock.total()

    def node_ready(self, node: int, value: Tensor) -> None:  # noqa: B027 (a default)
        """Hear that the row of a node below this item's is final."""

    def post(self) -> None:
        """Send the rows that this item completes, unless their buckets are sent."""
        if self.early:
            return
        context = self.context
        if self._linear:
            context.state.finished[self.index] = self.out
        clock = Stopwatch()
        for row_id, row in self._rows:
            message = self.buffer
            if self._linear and row is not None:
                message = self._combined(row)
            context.exchange.post(context.step, row_id, message)
        context.state.send_s += clock.total()

    def _combined(self, row: Row) -> RowBuffer:
        """Returns sum_i c_i m_i over the row's items i."""
        message = self.context.exchange.row_buffer()
        finished = self.context.state.finished
        torch.mul(finished[row.items[0]], row.coefficients[0], out=message.tensor)
        for i, c in zip(row.items[1:], row.coefficients[1:], strict=True):
            message.tensor.add_(finished[i], alpha=c)
        return message


class OwnItem(Item):
    """An item that the code requires of this worker."""

    def __init__(
        self, work: WorkList, context: StepContext, index: int, late: LatePass
    ) -> None:
        """`late` decides what a worker does that is late in an approximate step."""
        super().__init__(work, context, index)
        self._late = late

    def needless(self) -> bool:
        """Returns whether the step is decoded and the pass need not be finished."""
        exchange, step = self._exchange, self._step
        return exchange.done(step) and self._late.needless(exchange, step)

    def node_ready(self, node: int, value: Tensor) -> None:
        """While others wait for this worker, give them what it has."""
        self._late.offer(self.context, node, value)


class HelpItem(Item):
    """An item that stands in for a late worker."""

    may_fail = True

    def __init__(
        self, work: WorkList, context: StepContext, index: int, trials: Trials
    ) -> None:
        """`trials` says whether the item may fail."""
        super().__init__(work, context, index)
        self._trials = trials
        self.given_up = False  # its pass failed

    def failed(self, error: Exception) -> bool:
        """Returns whether the late worker is to be waited for instead."""
        self.given_up = self._trials.failed(self.node, error)
        return self.given_up

    def needless(self) -> bool:
        """Returns whether the step is decoded or the late worker's row has come."""
        exchange, step = self._exchange, self._step
        return exchange.done(step) or exchange.has(step, self.node)
