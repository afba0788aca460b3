"""What an idle worker helps with, and when.

Past its patience it takes the first item of its list that has not arrived; of two,
one whose shard has not begun to come. Rows are sent bucket by bucket while the backward
of their last micro-batch runs, so a shard of which some bucket is here will be here in
less than a micro-batch, the time that helping takes: it is helped only if it has not
come by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange


class Helping:
    """One worker's redundant items of one step."""

    def __init__(self, exchange: Exchange, code: Code, worker: int, step: int) -> None:
        """`exchange`: sees what has arrived."""
        self._exchange, self._step, self._tree = exchange, step, code.tree
        self._work, self._required = code.work[worker], code.required[worker]
        self._left = list(range(self._required, len(self._work)))

    def next_items(self, patience_s: float, usual_s: float) -> list[int]:
        """Wait; then the items that are missing, in the order to take them.

        Args:
            patience_s: to wait before any help, in seconds.
            usual_s: what the worker's own items usually take.

        Returns:
            Indices of its work. None: the step is decoded, or nothing is left.

        Raises:
            WorkerError: the job failed.
        """
        if self._exchange.wait(self._step, patience_s):
            return []
        waits, comes = self._missing()
        if not waits and comes:
            if self._exchange.wait(self._step, self._share(comes[0]) * usual_s):
                return []
            waits, comes = self._missing()
        return waits + comes

    def take(self, items: list[int]) -> None:
        """These are helped with, once."""
        self._left = [i for i in self._left if i not in items]

    def _share(self, item: int) -> float:
        """Of the worker's usual time, what the item takes."""
        tree, work = self._tree, self._work
        leaves = [int(tree.stop[node] - tree.start[node]) for node in work]
        return leaves[item] / max(1, sum(leaves[: self._required]))

    def _missing(self) -> tuple[list[int], list[int]]:
        """Not here and not on their way; on their way."""
        step, here = self._step, self._exchange.has
        missing = [i for i in self._left if not here(step, self._work[i])]
        comes = [i for i in missing if self._exchange.begun(step, self._work[i])]
        return [i for i in missing if i not in comes], comes
