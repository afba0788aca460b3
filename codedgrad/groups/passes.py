"""The passes of a local group: one worker's item, divided among its processes.

Leader and members run the same step (`codedgrad/gradient.py`), with the classes of this
room in the places of the exchange and of the passes:

    begin      the leader's exchange begins the step; it tells whether it is decoded
    passes     an item's leaves are divided; process i computes the maximal nodes of
               the summation tree over its own; all agree that they are done; the
               leader gathers the nodes' rows, bucket by bucket, and adds them:

                   row(node) = row(left) + row(right)     (rounded to the wire's type)

    help       the leader waits; past its patience it names up to L missing
               micro-batches, one for each process (`codedgrad.groups.help`)
    take       the leader broadcasts the decoded sum

Every addition is the tree's, so the row has the bits of one computed by one process.
If anybody abandons its part all do, so nobody waits for rows that never come.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.groups.code import division
from codedgrad.groups.exchange import empty_row
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.hooks import PassHooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.groups.membership import LocalGroup
    from codedgrad.row.payload import Payload
    from codedgrad.step.context import StepContext
    from codedgrad.step.passes import Passes, RowItem

_IN_FLIGHT = 2  # buckets on their way to the leader


class PartItem:
    """What one process computes of an item of its group; see `step.passes.RowItem`."""

    early = False

    def __init__(self, whole: RowItem, node: int, out: Tensor) -> None:
        """Compute `node` of the item `whole` into `out`, which is not sent."""
        self.may_fail = whole.may_fail
        self._whole = whole
        self.node = node
        self.out = out

    @property
    def context(self) -> StepContext:
        """The step."""
        return self._whole.context

    def needless(self) -> bool:
        """Returns whether the whole item is needless."""
        return self._whole.needless()

    def failed(self, error: Exception) -> bool:
        """Returns whether the whole item is given up."""
        return self._whole.failed(error)

    def bucket_ready(self, bucket: int) -> None:
        """Do nothing: the leader sends buckets when it has added them up."""

    def node_ready(self, node: int, value: Tensor) -> None:
        """Do nothing: groups send no parts of a row."""


class GroupPasses:
    """Computes items of work by all processes of a group together."""

    def __init__(
        self, group: LocalGroup, code: Code, payload: Payload, passes: Passes
    ) -> None:
        """`passes` are this process's own."""
        self.group = group
        self.passes = passes
        self._code = code
        self._layout = payload.layout
        self.bounds = list(itertools.pairwise(self._layout.bucket_starts))
        self._divided: dict[int, list[list[int]]] = {}
        self._rows: list[Tensor] = []
        self._inbox: list[Tensor] = []

    def row(self, item: RowItem) -> None:
        """Compute the row of `item`, its leaves divided; the leader has it in the end.

        Raises:
            Abandoned: the part of some process was abandoned; all processes skip the
                item then.
        """
        node = item.node
        if node not in self._divided:
            self._divided[node] = division(self._code.tree, node, self.group.size)
        nodes = self._divided[node]
        rows = self.memory(max(map(len, nodes)))
        finished = True
        try:
            for own, row in zip(nodes[self.group.member], rows, strict=False):
                self.passes.row(PartItem(item, own, row))
        except Abandoned:
            finished = False
        where = f"in step {item.context.step}"
        if not all(self.group.agree(finished, where, item.needless)):
            raise Abandoned
        hooks = PassHooks(self.passes, item, int(self._code.tree.stop[node]) - 1)
        for bucket, pieces in self.gathered(rows, where):
            values = {
                n: piece
                for own, theirs in zip(nodes, pieces, strict=True)
                for n, piece in zip(own, theirs, strict=False)
            }
            begin, end = self.bounds[bucket]
            item.out[begin:end].copy_(self._sum(node, values, bucket, hooks))
            if item.early:
                item.bucket_ready(bucket)

    def _sum(
        self, node: int, values: dict[int, Tensor], bucket: int, hooks: PassHooks
    ) -> Tensor:
        """Returns one bucket of the row of `node`, added in the order of the tree."""
        if node in values:
            return values[node]
        tree = self._code.tree
        left = self._sum(int(tree.left[node]), values, bucket, hooks)
        right = self._sum(int(tree.right[node]), values, bucket, hooks)
        left.add_(right)
        wire = self._layout.wire_of(bucket)
        if wire is not None:  # the sum may so leave the range of the type
            left.copy_(left.to(wire))
            hooks.bucket_checked(bool(torch.isfinite(left).all()))
        return left

    def divisible(self, node: int) -> bool:
        """Returns whether `node` has a leaf for every process of the group."""
        tree = self._code.tree
        return bool(tree.stop[node] - tree.start[node] >= self.group.size)

    # ---- rows of several processes ----

    def gathered(self, rows: list[Tensor], where: str) -> Iterator[tuple[int, Tensor]]:
        """Yields, on the leader, each bucket and its pieces [L, rows, size], in order.

        The other processes send their pieces meanwhile and see nothing.
        """
        under_way: deque[tuple[int, Any, Tensor | None]] = deque()
        for bucket, (begin, end) in enumerate(self.bounds):
            if len(under_way) == _IN_FLIGHT:
                yield from self._arrived(under_way.popleft(), where)
            piece = rows[0][None, begin:end]
            if len(rows) > 1:
                piece = torch.stack([row[begin:end] for row in rows])
            into = self._place(bucket, piece) if self.group.leads else None
            parts = None if into is None else list(into)
            under_way.append((bucket, self.group.gather(piece, parts), into))
        while under_way:
            yield from self._arrived(under_way.popleft(), where)

    def _arrived(
        self, one: tuple[int, Any, Tensor | None], where: str
    ) -> Iterator[tuple[int, Tensor]]:
        bucket, work, pieces = one
        self.group.finish(work, where)
        if pieces is not None:
            yield bucket, pieces

    def _place(self, bucket: int, piece: Tensor) -> Tensor:
        """Returns the leader's memory for one bucket of every process."""
        place, need = bucket % _IN_FLIGHT, self.group.size * piece.numel()
        if not self._inbox:
            self._inbox = [piece.new_empty(0) for _ in range(_IN_FLIGHT)]
        if self._inbox[place].numel() < need:
            self._inbox[place] = piece.new_empty(need)
        return self._inbox[place][:need].view(self.group.size, *piece.shape)

    def memory(self, count: int) -> list[Tensor]:
        """Returns this many rows of this process's own."""
        # Each in a storage of its own: Layout.view counts from a storage's begin.
        while len(self._rows) < count:
            self._rows.append(empty_row(self._layout))
        return self._rows[:count]
