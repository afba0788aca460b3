"""What reading samples inside the passes costs, and a word about it."""

from __future__ import annotations

import logging
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("codedgrad")

STEPS = 12  # steps that are looked at, the first of which is not counted
_SHARE = 0.15  # of a step; less is not worth processes
_LEAST_S = 0.001  # a millisecond a step
_TEXT = (
    "reading samples takes %.0f of the %.0f ms of a step, in the training process, "
    "which computes nothing meanwhile. ShardSampler(..., num_workers=2) reads them "
    "ahead in loader processes, as a DataLoader does (this is said once)"
)


class ReadingCost:
    """Compares the seconds of reading with those of the first steps.

    Attributes:
        done: whether enough steps were seen, so that nothing is measured any more.
    """

    def __init__(self) -> None:
        """Begin before the first step."""
        self.done = False
        self._read_s = 0.0
        self._begin: float | None = None
        self._steps: list[tuple[float, float]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Add the seconds of what is read inside to the step's."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._read_s += time.perf_counter() - begin

    def step_begins(self) -> None:
        """Hear that the step before has ended, and another one begins."""
        now = time.perf_counter()
        if self._begin is not None:
            self._steps.append((self._read_s, now - self._begin))
        self._begin, self._read_s = now, 0.0
        if len(self._steps) == STEPS:
            self.done = True
            read, step = map(statistics.median, zip(*self._steps[1:], strict=True))
            if read > max(_SHARE * step, _LEAST_S):
                log.warning(_TEXT, read * 1e3, step * 1e3)
