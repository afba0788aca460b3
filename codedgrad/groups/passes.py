"""A step of a local group: one worker's work, divided among its processes.

Leader and members run the same step (`gradient.py`), with what is here in the places
of the exchange and of the passes:

    begin      the leader's exchange begins the step; it tells whether it is decoded
    passes     an item's leaves are divided; process i computes the maximal nodes of
               the summation tree over its own; all agree that they are done; the
               leader gathers the nodes' rows, bucket by bucket, and adds them:

                   row(node) = row(left) + row(right)     (rounded to the wire's type)

    help       the leader waits; past its patience it names up to L missing
               micro-batches, one for each process
    take       the leader broadcasts the decoded sum

Every addition is the tree's, so the row has the bits of one computed by one process.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from codedgrad import codes
from codedgrad.data import even
from codedgrad.errors import ConfigError
from codedgrad.groups.exchange import (
    FollowersExchange,
    LeadersExchange,
    empty_row,
)
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.helping import Helping
from codedgrad.step.passes import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.codes.tree import SumTree
    from codedgrad.data import StepShards
    from codedgrad.exchange.base import Exchange
    from codedgrad.groups.membership import LocalGroup
    from codedgrad.monitor.reporter import StepState
    from codedgrad.row.layout import Payload
    from codedgrad.step.passes import Passes

_IN_FLIGHT = 2  # buckets on their way to the leader


def division(tree: SumTree, node: int, members: int) -> list[list[int]]:
    """The nodes that each of `members` computes of `node`.

    Member i has a run of leaves, as even as possible, larger ones first, and of them
    the maximal nodes; one where leaves and members are powers of two.
    """
    begin, nodes = int(tree.start[node]), []
    for size in even(int(tree.stop[node]) - begin, members):
        nodes.append(_maximal(tree, node, begin, begin + size))
        begin += size
    return nodes


def _maximal(tree: SumTree, node: int, begin: int, end: int) -> list[int]:
    if tree.stop[node] <= begin or end <= tree.start[node]:
        return []
    if begin <= tree.start[node] and tree.stop[node] <= end:
        return [node]
    left, right = int(tree.left[node]), int(tree.right[node])
    return _maximal(tree, left, begin, end) + _maximal(tree, right, begin, end)


def fitting(code: Code | None, workers: int, group: LocalGroup | None) -> Code:
    """The code; if None `codes.spread`, with a micro-batch for every process.

    Raises:
        ConfigError: it is for another number of workers, or has fewer micro-batches
            than a group has processes.
    """
    if code is None:
        return codes.spread(workers, micro=_micro(1 if group is None else group.size))
    _check(code, workers, group)
    return code


def _micro(size: int) -> int:
    return max(4, 1 << (size - 1).bit_length())


def _check(code: Code, workers: int, group: LocalGroup | None) -> None:
    job, remedy, size = str(workers), "build it with codedgrad.size()", 1
    if group is not None:
        size = group.size
        job = f"{workers} local groups of {size} processes"
        remedy = (
            f"with local_group a code is for the number of groups: "
            f"codes.spread({workers}, micro={_micro(size)})"
        )
    if code.workers != workers:
        raise ConfigError(
            f"the code is for {code.workers} workers and the job has {job}; {remedy}"
        )
    for worker in range(workers):
        for node in code.work[worker][: code.required[worker]]:
            leaves = int(code.tree.stop[node] - code.tree.start[node])
            if leaves < size:
                raise ConfigError(
                    f"{code.describe()} computes {leaves} micro-batch(es) at a time, "
                    f"too few for the {size} processes of a local group; use a code "
                    f"with more, codes.spread({workers}, micro={_micro(size)}), or "
                    f"smaller groups"
                )


class GroupPasses:
    """Items of work, done by all processes of a group together."""

    def __init__(
        self, group: LocalGroup, code: Code, payload: Payload, passes: Passes
    ) -> None:
        """`passes`: this process's own."""
        self._group = group
        self._code = code
        self._payload = payload
        self._passes = passes
        self._bounds = list(itertools.pairwise(payload.bucket_starts))
        self._divided: dict[int, list[list[int]]] = {}
        self._rows: list[Tensor] = []
        self._inbox: list[Tensor] = []
        self._round = 0  # of help, the same on every process

    def row(
        self,
        node: int,
        out: Tensor,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        step: int,
        needless: Callable[[], bool],
        send: Callable[[int], None] | None = None,
        _done: object = None,
    ) -> None:
        """As `Passes.row`, its leaves divided; the leader has the row.

        A process whose part was abandoned makes all skip it: nobody waits for rows
        that never come.
        """
        if node not in self._divided:
            self._divided[node] = division(self._code.tree, node, self._group.size)
        nodes = self._divided[node]
        rows = self._memory(max(map(len, nodes)))
        ok = True
        try:
            for own, row in zip(nodes[self._group.member], rows, strict=False):
                self._passes.row(own, row, loss_fn, shards, step, needless)
        except Abandoned:
            ok = False
        where = f"in step {step}"
        if not all(self._group.agree(ok, where, needless)):
            raise Abandoned
        check = self._passes.checker_of(step, int(self._code.tree.stop[node]) - 1)
        for bucket, pieces in self._gathered(rows, where):
            values = {
                n: piece
                for own, theirs in zip(nodes, pieces, strict=True)
                for n, piece in zip(own, theirs, strict=False)
            }
            begin, end = self._bounds[bucket]
            out[begin:end].copy_(self._sum(node, values, bucket, check))
            if send is not None:
                send(bucket)

    def _sum(
        self,
        node: int,
        values: dict[int, Tensor],
        bucket: int,
        check: Callable[[bool], None],
    ) -> Tensor:
        """One bucket of the row of `node`, in the order of the tree."""
        if node in values:
            return values[node]
        tree = self._code.tree
        left = self._sum(int(tree.left[node]), values, bucket, check)
        right = self._sum(int(tree.right[node]), values, bucket, check)
        left.add_(right)
        wire = self._payload.wire_of(bucket)
        if wire is not None:  # and may so leave the range of the type
            left.copy_(left.to(wire))
            check(bool(torch.isfinite(left).all()))
        return left

    def help_until_decoded(
        self,
        exchange: Exchange,
        state: StepState,
        patience_s: float,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        together: Callable[[int, Callable[[], bool]], None],
    ) -> None:
        """Wait for `state.step`, in rounds of help past the patience.

        `together`: computes and posts an item whose leaves are divided.
        """
        work = self._code.work[self._group.index]
        helping = Helping(exchange, self._code, self._group.index, state.step)
        while items := self._next_round(exchange, state.step, helping, patience_s):
            nodes = [work[i] for i in items]
            state.helped += nodes
            clock = Stopwatch()
            self._round += 1
            needless = self._needless(exchange, state.step, nodes)
            try:
                if self._divisible(nodes[0]):
                    together(items[0], needless)
                else:
                    self._one_each(nodes, exchange, state, loss_fn, shards, needless)
            except Abandoned:
                state.abandoned = True
            state.help_s += clock.total()

    def _next_round(
        self, exchange: Exchange, step: int, helping: Helping, patience_s: float
    ) -> list[int]:
        """Items for all to help with; none: the step is decoded."""
        size, what = self._group.size, f"in step {step}"
        if not self._group.leads:
            count, *told = self._group.tell([0] * (1 + size), what)
            return told[:count]
        work = self._code.work[self._group.index]
        items: list[int] = []
        for i in helping.next_items(patience_s, self._passes.usual_s):
            if items and self._divisible(work[i]):
                break
            items.append(i)
            if len(items) == size or self._divisible(work[i]):
                break
        helping.take(items)
        if not items:
            exchange.wait_all(step)
        rest = [0] * (size - len(items))
        self._group.tell([len(items), *items, *rest], what)
        return items

    def _divisible(self, node: int) -> bool:
        tree = self._code.tree
        return bool(tree.stop[node] - tree.start[node] >= self._group.size)

    def _needless(
        self, exchange: Exchange, step: int, nodes: list[int]
    ) -> Callable[[], bool]:
        """May this process's part of the round be abandoned?

        The leader also tells the others, whose nodes only he sees arrive.
        """
        group, round_ = self._group, self._round
        assert isinstance(exchange, LeadersExchange | FollowersExchange)
        board = exchange.board
        own = [nodes[0]] * group.size if self._divisible(nodes[0]) else nodes

        def follows() -> bool:
            return exchange.done(step) or board.cancelled(group.member) >= round_

        def leads() -> bool:
            for member, node in enumerate(own):
                if board.cancelled(member) < round_ and exchange.has(step, node):
                    board.cancel(member, round_)
            return follows()

        return leads if group.leads else follows

    def _one_each(
        self,
        nodes: list[int],
        exchange: Exchange,
        state: StepState,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        needless: Callable[[], bool],
    ) -> None:
        """Process i computes nodes[i]; the leader posts what got done."""
        group, step = self._group, state.step
        rows = self._memory(1)
        done = exchange.row_buffer()
        ok = group.member < len(nodes)
        if ok:
            out = done.tensor if group.leads else rows[0]
            node = nodes[group.member]
            try:
                self._passes.row(node, out, loss_fn, shards, step, needless)
            except Abandoned:
                ok, state.abandoned = False, True
            else:
                if group.leads:
                    exchange.post(step, node, done)
        finished = group.agree(ok, f"in step {step}", needless)
        came = [i for i in range(1, len(nodes)) if finished[i]]
        if not came:
            return
        buffers = {i: exchange.row_buffer() for i in came} if group.leads else {}
        for bucket, pieces in self._gathered(rows, f"in step {step}"):
            begin, end = self._bounds[bucket]
            for i, buffer in buffers.items():
                buffer.tensor[begin:end].copy_(pieces[i][0])
        for i, buffer in buffers.items():
            exchange.post(step, nodes[i], buffer)

    def _gathered(self, rows: list[Tensor], what: str) -> Iterator[tuple[int, Tensor]]:
        """On the leader: (bucket, the processes' pieces [L, rows, size]), in order.

        Others send theirs meanwhile; they see nothing.
        """
        under_way: deque[tuple[int, Any, Tensor | None]] = deque()
        for bucket, (begin, end) in enumerate(self._bounds):
            if len(under_way) == _IN_FLIGHT:
                yield from self._arrived(under_way.popleft(), what)
            piece = rows[0][None, begin:end]
            if len(rows) > 1:
                piece = torch.stack([row[begin:end] for row in rows])
            into = self._place(bucket, piece) if self._group.leads else None
            parts = None if into is None else list(into)
            under_way.append((bucket, self._group.gather(piece, parts), into))
        while under_way:
            yield from self._arrived(under_way.popleft(), what)

    def _arrived(
        self, one: tuple[int, Any, Tensor | None], what: str
    ) -> Iterator[tuple[int, Tensor]]:
        bucket, work, pieces = one
        self._group.finish(work, what)
        if pieces is not None:
            yield bucket, pieces

    def _place(self, bucket: int, piece: Tensor) -> Tensor:
        """The leader's memory for one bucket of every process."""
        place, need = bucket % _IN_FLIGHT, self._group.size * piece.numel()
        if not self._inbox:
            self._inbox = [piece.new_empty(0) for _ in range(_IN_FLIGHT)]
        if self._inbox[place].numel() < need:
            self._inbox[place] = piece.new_empty(need)
        return self._inbox[place][:need].view(self._group.size, *piece.shape)

    def _memory(self, count: int) -> list[Tensor]:
        """This many rows of this process's own."""
        # Each in a storage of its own: Payload.view counts from a storage's begin.
        while len(self._rows) < count:
            self._rows.append(empty_row(self._payload))
        return self._rows[:count]
