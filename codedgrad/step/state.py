"""What happens to one worker in one step, and how long it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Stopwatch:
    """Counts the seconds of one step by phase."""

    def __init__(self) -> None:
        """Start the watch."""
        self.start = time.monotonic()
        self._lap = self.start
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._lap
        self._lap = now

    def total(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self.start


class StepState:
    """What has happened to this worker in one step so far.

    Attributes:
        step: the step's number.
        forwarded: the step was decoded before this worker began it.
        lag_s: seconds that the worker waited before the step because another one lagged
            by a whole window.
        abandoned: a pass was left unfinished because it was not needed any more.
        done: share of the worker's own required work that was done, 0 to 1.
        helped: tree nodes whose computation was begun for others.
        help_s: seconds spent in passes for others.
        send_s: seconds spent handing rows to the engine.
        finished: rows of finished items by item, kept for codes whose messages combine
            several of them.
    """

    def __init__(self, step: int, *, forwarded: bool, lag_s: float = 0.0) -> None:
        """Begin with a step in which nothing has happened yet."""
        self.step = step
        self.forwarded = forwarded
        self.lag_s = lag_s
        self.abandoned = False
        self.done = 0.0 if forwarded else 1.0
        self.helped: list[int] = []
        self.help_s = 0.0
        self.send_s = 0.0
        self.finished: dict[int, Tensor] = {}
