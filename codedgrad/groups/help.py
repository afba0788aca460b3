"""How a local group helps others: in rounds, which the leader names.

The leader waits for the step. Past its patience it names items: one whose leaves all
processes divide, or up to one micro-batch for each process. It also sees what arrives
meanwhile and tells the members, through the board, which part is not needed any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.groups.exchange import FollowersExchange, LeadersExchange
from codedgrad.groups.passes import PartItem
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.helping import Helping
from codedgrad.step.items import Item
from codedgrad.step.state import Stopwatch
from codedgrad.step.work import compute_and_post

if TYPE_CHECKING:
    from codedgrad.groups.passes import GroupPasses
    from codedgrad.step.context import StepContext
    from codedgrad.step.items import WorkList
    from codedgrad.step.patience import Patience


class RoundItem(Item):
    """The first item of a round of help, which may be the only one."""

    def __init__(
        self, work: WorkList, context: StepContext, index: int, needless: Needless
    ) -> None:
        """`needless` knows what is needed of the whole round."""
        super().__init__(work, context, index)
        self._needless = needless

    def needless(self) -> bool:
        """Returns whether this process's part of the round is needless."""
        return self._needless.asked()


class Needless:
    """Knows whether a process's part of a round of help is still needed."""

    def __init__(
        self, shared: GroupPasses, context: StepContext, nodes: list[int], number: int
    ) -> None:
        """`nodes` are the round's, `number` is the round's."""
        exchange = context.exchange
        assert isinstance(exchange, LeadersExchange | FollowersExchange)
        self._exchange, self._step = exchange, context.step
        self._group, self._round = shared.group, number
        # An item whose leaves are divided concerns every process.
        whole = shared.divisible(nodes[0])
        self._nodes = [nodes[0]] * shared.group.size if whole else nodes

    def asked(self) -> bool:
        """Returns whether the part is needless; the leader also tells the members."""
        board = self._exchange.board
        if self._group.leads:
            for member, node in enumerate(self._nodes):
                if board.cancelled(member) < self._round and self._exchange.has(
                    self._step, node
                ):
                    board.cancel(member, self._round)
        if self._exchange.done(self._step):
            return True
        return board.cancelled(self._group.member) >= self._round


class GroupHelpWork:
    """The items that stand in for groups which are late."""

    def __init__(self, shared: GroupPasses, work: WorkList, patience: Patience) -> None:
        """`shared` computes an item by all processes together."""
        self._shared = shared
        self._group = shared.group
        self._passes = shared.passes
        self._work = work
        self._patience = patience
        self._round = 0  # of help, the same on every process

    def until_decoded(self, context: StepContext) -> None:
        """Wait until the step is decoded, in rounds of help past the patience.

        Raises:
            WorkerError: the job failed.
        """
        work, state = self._work, context.state
        patience_s = self._patience.seconds(self._passes.usual_s)
        helpable = context.shards.sampler.helpable
        helping = Helping(context.exchange, work, context.step, possible=helpable)
        while items := self._next_round(context, helping, patience_s):
            nodes = [work.nodes[i] for i in items]
            state.helped += nodes
            clock = Stopwatch()
            self._round += 1
            needless = Needless(self._shared, context, nodes, self._round)
            first = RoundItem(work, context, items[0], needless)
            try:
                if self._shared.divisible(nodes[0]):
                    compute_and_post(self._shared, first)
                else:
                    self._one_each(context, nodes, first)
            except Abandoned:
                state.abandoned = True
            state.help_s += clock.total()

    def _next_round(
        self, context: StepContext, helping: Helping, patience_s: float
    ) -> list[int]:
        """Returns items for all to help with; none when the step is decoded."""
        size, where = self._group.size, f"in step {context.step}"
        if not self._group.leads:
            count, *told = self._group.tell([0] * (1 + size), where)
            return told[:count]
        items: list[int] = []
        for i in helping.next_items(patience_s, self._passes.usual_s):
            divisible = self._shared.divisible(self._work.nodes[i])
            if items and divisible:
                break
            items.append(i)
            if len(items) == size or divisible:
                break
        helping.take(items)
        if not items:
            context.exchange.wait_all(context.step)
        rest = [0] * (size - len(items))
        self._group.tell([len(items), *items, *rest], where)
        return items

    def _one_each(self, context: StepContext, nodes: list[int], first: Item) -> None:
        """Process i computes nodes[i]; the leader posts what got done."""
        group, step, exchange = self._group, context.step, context.exchange
        rows = self._shared.memory(1)
        finished = group.member < len(nodes)
        if finished:
            out = first.out if group.leads else rows[0]
            try:
                self._passes.row(PartItem(first, nodes[group.member], out))
            except Abandoned:
                finished, context.state.abandoned = False, True
            else:
                if group.leads:
                    exchange.post(step, nodes[0], first.buffer)
        where = f"in step {step}"
        everyone = group.agree(finished, where, first.needless)
        came = [i for i in range(1, len(nodes)) if everyone[i]]
        if not came:
            return
        buffers = {i: exchange.row_buffer() for i in came} if group.leads else {}
        for bucket, pieces in self._shared.gathered(rows, where):
            begin, end = self._shared.bounds[bucket]
            for i, buffer in buffers.items():
                buffer.tensor[begin:end].copy_(pieces[i][0])
        for i, buffer in buffers.items():
            exchange.post(step, nodes[i], buffer)
