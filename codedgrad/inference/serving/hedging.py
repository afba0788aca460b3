"""Whom a worker asks for help with a late query, and when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from codedgrad.inference.serving.seen import Seen, Shape

_PROBES = 2  # passes of a shape in which others compute, too, to learn their times
_UNKNOWN_S = 0.05  # between two asks while nobody's time is known
_SLICE_S = 3e-3  # a thread that was only preempted is back after about that time
_UNANSWERED = 4  # asks that a worker may have without a reply


class Hedging:
    """The rules of time. A worker that is silent is not asked for ever.

    Args:
        seen: what is known of the times.
        patience: how much longer than usual a query may take, as a share.
    """

    def __init__(self, seen: Seen, patience: float) -> None:
        self._seen, self._patience = seen, patience

    def first_s(self, shape: Shape) -> float:
        """Return the seconds until a query's first helper is asked; 0: at once."""
        seen = self._seen
        usual_s = seen.usual_s(shape)
        if usual_s is None or seen.slow_itself():
            return 0.0
        if not seen.knows_others(shape) and seen.passes(shape) < _PROBES:
            return 0.0
        return usual_s + max(self._patience * usual_s, min(_SLICE_S, usual_s))

    def again_s(self, shape: Shape) -> float:
        """Return the seconds from one ask to the next one, of another worker."""
        usual_s = self._seen.usual_s(shape)
        if usual_s is None:
            return _UNKNOWN_S
        return max(usual_s * (1.0 + self._patience), _SLICE_S)


class Helpers:
    """Which other workers have asks of this one that they have not replied to."""

    def __init__(self, rank: int, size: int) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        others = [(rank + i) % size for i in range(1, size)]
        self._open = dict.fromkeys(others, 0)
        self._gone: set[int] = set()
        self._turn = 0

    def choose(self, asked: Collection[int]) -> int | None:
        """Return whom to ask next, and count the ask; None: nobody can be asked.

        Args:
            asked: those that were asked already.
        """
        with self._lock:
            free = [
                w
                for w, count in self._open.items()
                if w not in asked and w not in self._gone and count < _UNANSWERED
            ]
            if not free:
                return None
            least = min(self._open[w] for w in free)
            free = [w for w in free if self._open[w] == least]
            self._turn += 1
            chosen = free[self._turn % len(free)]
            self._open[chosen] += 1
            return chosen

    def replied(self, worker: int) -> None:
        """Hear of a reply, of any kind."""
        with self._lock:
            self._open[worker] = max(0, self._open[worker] - 1)

    def gone(self, worker: int) -> None:
        """Hear that a worker is lost."""
        with self._lock:
            self._gone.add(worker)

    def waited_for(self) -> list[int]:
        """Return the live workers that owe a reply."""
        with self._lock:
            return [w for w, n in self._open.items() if n > 0 and w not in self._gone]
