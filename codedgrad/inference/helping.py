"""Which part of a late worker's share an idle worker computes next.

A worker computes its parts in order. So of a late worker's missing parts the first one
is in its hands, and the others are not begun. These are taken at once; the first one is
computed a second time only when its worker has had it for longer than it usually takes.
Helpers do not talk to one another: each takes the missing part at its own place of the
list, so several helpers take different parts as long as there are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.inference.parts import Shares


class Helping:
    """Chooses among the parts of others, for one worker in one evaluation."""

    def __init__(self, shares: Shares, worker: int, workers: int) -> None:
        """Take who computes what, and the place of this worker among all."""
        self._shares = shares
        self._place = (worker + 0.5) / workers
        self._since: dict[int, float] = {}  # since when a part was its owner's first

    def next(
        self, has: Callable[[int], bool], now_s: float, batch_s: float
    ) -> tuple[int | None, bool]:
        """Returns the part to compute now, if any, and whether any is missing.

        Args:
            has: whether the row of a node has arrived.
            now_s: the time.
            batch_s: how long a batch may take before its worker is late.
        """
        shares = self._shares
        first: set[int] = set()
        ready: list[int] = []
        missing = False
        for i in shares.others:
            part, owner = shares.parts[i], shares.owners[i][0]
            if has(part.node):
                continue
            missing = True
            if owner in first:
                ready.append(i)
                continue
            first.add(owner)
            waited_s = now_s - self._since.setdefault(i, now_s)
            if waited_s > batch_s * (part.stop - part.first):
                ready.append(i)
        if not ready:
            return None, missing
        return ready[int(len(ready) * self._place)], True
