"""A worker's part of a step: first its own items, then those of whoever is late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from codedgrad.errors import WorkerError
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.helping import Helping
from codedgrad.step.items import HelpItem, Item, OwnItem
from codedgrad.step.pieces import PieceCost, Trials
from codedgrad.step.state import Stopwatch

if TYPE_CHECKING:
    from codedgrad.step.context import StepContext
    from codedgrad.step.items import WorkList
    from codedgrad.step.late import LatePass
    from codedgrad.step.passes import Passes, RowItem
    from codedgrad.step.patience import Patience


# So often must rows of a step be lacked before workers compute what is not on their
# lists: those who have it there come first.
_LAST_RESORT = 3


class Rows(Protocol):
    """Computes rows: `Passes` alone, or all processes of a local group together."""

    def row(self, item: RowItem) -> None:
        """Compute the row of `item.node` into `item.out`; see `Passes.row`."""


class OwnWork:
    """The items that the code requires of this worker."""

    def __init__(
        self, passes: Passes, rows: Rows, work: WorkList, late: LatePass
    ) -> None:
        """`passes` are this process's own; `rows` computes an item's row."""
        self._passes = passes
        self._rows = rows
        self._work = work
        self._late = late

    def compute(self, context: StepContext) -> None:
        """Compute and send the own items, unless the step is decoded before."""
        state = context.state
        if state.forwarded:
            self._passes.note_late()
            return
        clock = Stopwatch()
        self._passes.begin(context.step)
        try:
            for index in range(self._work.required):
                item = OwnItem(self._work, context, index, self._late)
                compute_and_post(self._rows, item)
        except Abandoned:
            state.abandoned = True
            state.done = self._passes.progress()
            self._passes.note_late()
        else:
            self._passes.note_duration(clock.total())
        self._late.over(abandoned=state.abandoned)


class HelpWork:
    """The items that stand in for workers which are late."""

    def __init__(self, passes: Passes, work: WorkList, patience: Patience) -> None:
        """`patience` says how long to wait before each item."""
        self._passes = passes
        self._work = work
        self._patience = patience
        self._cost = PieceCost()
        self._trials = Trials(work.code, whole=passes.whole)

    def until_decoded(self, context: StepContext) -> None:
        """Wait until the step is decoded, helping past the patience.

        Raises:
            WorkerError: the job failed.
        """
        exchange = context.exchange
        patience_s = self._patience.seconds(self._passes.usual_s)
        possible = context.shards.sampler.helpable

        def check() -> None:
            if not possible and (lost := exchange.lost()):
                raise WorkerError(
                    f"worker(s) {lost} are lost, and nobody else may read their data; "
                    f"a ShardSampler or a stream with helpers=True lets all read it"
                )

        check()
        helping = Helping(exchange, self._work, context.step, possible=possible)
        # Patience before every item: others may be about to finish the next one.
        while items := helping.next_items(patience_s, self._passes.usual_s):
            self._help(context, helping, items[0])

        def help_out(times: int) -> None:
            check()
            if times >= _LAST_RESORT:
                helping.last_resort()
            while items := helping.next_items(0.0, 0.0):
                self._help(context, helping, items[0])

        exchange.wait_all(context.step, help_out)

    def _help(self, context: StepContext, helping: Helping, index: int) -> None:
        """Compute and send one item, then strike it off the list.

        One that became needless stays on it: its row may be needed again. One whose
        pass failed does not.
        """
        item = HelpItem(self._work, context, index, self._trials)
        state = context.state
        state.helped.append(item.node)
        clock = Stopwatch()
        try:
            compute_and_post(self._passes, item)
        except Abandoned:
            state.abandoned = True
            if item.given_up:
                helping.take([index])
        else:
            helping.take([index])
            if self._passes.whole:
                share = helping.share(index)
                self._cost.add(clock.total(), share, self._passes.usual_s)
        state.help_s += clock.total()


def compute_and_post(rows: Rows, item: Item) -> None:
    """Compute an item's row and send the rows that it completes.

    Raises:
        Abandoned: the item became needless.
    """
    rows.row(item)
    item.post()
