"""What a predictor counts."""

from __future__ import annotations

import bisect
import math
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codedgrad.inference.serving.query import Answer

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, math.inf)
_LAST = 1024  # answers whose quantiles are told
_NAMES = (
    "exact",
    "helped",
    "stand_in",
    "failed",
    "refused",
    "asked",
    "helped_others",
    "seconds",
)


class Counts:
    """Counts of one worker."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.exact = self.helped = self.stand_in = self.failed = 0
        self.refused = self.asked = self.helped_others = 0
        self.seconds = 0.0
        self.by_bound = [0] * len(BOUNDS_S)  # answers within each of BOUNDS_S, alone
        self._lock = threading.Lock()
        self._last: deque[float] = deque(maxlen=_LAST)

    def ended(self, answer: Answer | None, rank: int) -> None:
        """Count a query that is done; None: it has failed."""
        with self._lock:
            self._count(answer, rank)

    def add(self, name: str) -> None:
        """Count one more of "refused", "asked" or "helped_others"."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def _count(self, answer: Answer | None, rank: int) -> None:
        if answer is None:
            self.failed += 1
            return
        if not answer.exact:
            self.stand_in += 1
        elif answer.who == rank:
            self.exact += 1
        else:
            self.helped += 1
        self.seconds += answer.seconds
        self.by_bound[bisect.bisect_left(BOUNDS_S, answer.seconds)] += 1
        self._last.append(answer.seconds)

    def to_dict(self) -> dict[str, float]:
        """Return the counts by name, and quantiles of the last answers in seconds."""
        with self._lock:
            found: dict[str, float] = {name: getattr(self, name) for name in _NAMES}
            last = sorted(self._last)
        for name, share in (("p50_s", 0.5), ("p99_s", 0.99), ("p999_s", 0.999)):
            place = min(int(share * len(last)), len(last) - 1)
            found[name] = last[place] if last else math.nan
        return found
