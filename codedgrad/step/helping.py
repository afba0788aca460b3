"""What an idle worker helps with, and when.

Past its patience it takes the first item of its list that has not arrived, and of two
such items one whose shard has not begun to come. Rows are sent bucket by bucket while
the backward of their last micro-batch runs. So a shard of which some bucket is here
will be here in less than a micro-batch, which is the time that helping takes; it is
helped only if it has not come by then.

The micro-batches of workers that are lost for good are divided among those who are
left, and nobody waits before he computes his part of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.codes.dealing import dealt

if TYPE_CHECKING:
    from codedgrad.exchange.base import Exchange
    from codedgrad.step.items import WorkList


class Helping:
    """Chooses among one worker's redundant items of one step."""

    def __init__(
        self,
        exchange: Exchange,
        work: WorkList,
        step: int,
        *,
        possible: bool = True,
    ) -> None:
        """Begin with all that the code lists; `exchange` sees what has arrived.

        `possible` says whether this worker has the data of others; else it waits.
        """
        self._exchange, self._step, self._tree = exchange, step, work.code.tree
        self._work, self._required = work.nodes, work.required
        self._left = list(range(work.required, work.listed)) if possible else []
        self._beyond = list(range(work.listed, len(work.nodes))) if possible else []
        self._code, self._worker = work.code, work.worker
        self._lost: list[int] = []  # to these belong
        self._dealt: list[int] = []

    def last_resort(self) -> None:
        """Put all other micro-batches at the end of the list."""
        self._left += self._beyond
        self._beyond = []

    def next_items(self, patience_s: float, usual_s: float) -> list[int]:
        """Wait, then return the items that are missing, in the order to take them.

        Args:
            patience_s: seconds to wait before any help.
            usual_s: seconds that the worker's own items usually take.

        Returns:
            Indices into the worker's list. The list is empty when the step is decoded
            or nothing is left to help with.

        Raises:
            WorkerError: the job failed.
        """
        if dealt := self._missing_of_the_lost():
            return dealt
        if self._exchange.wait(self._step, patience_s):
            return []
        if dealt := self._missing_of_the_lost():
            return dealt
        waits, comes = self._missing()
        if not waits and comes:
            if self._exchange.wait(self._step, self.share(comes[0]) * usual_s):
                return []
            waits, comes = self._missing()
        return waits + comes

    def take(self, items: list[int]) -> None:
        """Strike these items off the list: each is helped with once."""
        self._left = [i for i in self._left if i not in items]
        self._dealt = [i for i in self._dealt if i not in items]

    def share(self, item: int) -> float:
        """Returns the item's share of the worker's usual time."""
        tree, work = self._tree, self._work
        leaves = [int(tree.stop[node] - tree.start[node]) for node in work]
        return leaves[item] / max(1, sum(leaves[: self._required]))

    def _missing_of_the_lost(self) -> list[int]:
        """Returns missing items that fall to this worker because others are lost."""
        lost = self._exchange.lost()
        if lost != self._lost:
            self._lost = lost
            mine = set(dealt(self._code, lost)[self._worker])
            items = self._left + self._beyond
            # Whole shards go to whoever was dealt their first micro-batch.
            self._dealt = [i for i in items if self._first_leaf(i) in mine]
        if not self._dealt or self._exchange.done(self._step):
            return []
        return [i for i in self._dealt if not self._here(i)]

    def _missing(self) -> tuple[list[int], list[int]]:
        """Returns the missing items of which nothing has come, and the other ones."""
        step, exchange = self._step, self._exchange
        missing = [i for i in self._left if not self._here(i)]
        comes = [i for i in missing if exchange.begun(step, self._work[i])]
        return [i for i in missing if i not in comes], comes

    def _first_leaf(self, item: int) -> int:
        return int(self._tree.start[self._work[item]])

    def _here(self, item: int) -> bool:
        return self._exchange.has(self._step, self._work[item])
