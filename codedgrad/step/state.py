"""What one step has done on this worker so far, and the stopwatch that times it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Stopwatch:
    """Measures the phases of a step, in seconds.

    Attributes:
        start: The monotonic clock's time at the start.
        phases: The seconds that were booked under each phase.
    """

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
        """Return the seconds since the start."""
        return time.monotonic() - self.start


@dataclass
class StepState:
    """What happens to this worker in one step.

    Attributes:
        step: The number of the step.
        forwarded: Whether the step was decoded before this worker began it.
        clock: The stopwatch of the step. Its phases "compute" and "wait" are the own
            passes and the time from then on.
        lag_s: The time in which this worker waited for one that lags a whole window.
        abandoned: Whether a pass was left unfinished.
        done: The share of the own required passes that was done.
        helped: The tree nodes of the redundant passes that this worker began.
        help_s: The time in redundant passes.
        send_s: The time in which rows were handed to the engine.
        finished: The rows of finished items, by item, that a linear code combines.
    """

    step: int
    forwarded: bool = False
    clock: Stopwatch = field(default_factory=Stopwatch)
    lag_s: float = 0.0
    abandoned: bool = False
    done: float = field(init=False)
    helped: list[int] = field(default_factory=list)
    help_s: float = 0.0
    send_s: float = 0.0
    finished: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A worker does all of its work unless the step is decoded or it abandons."""
        self.done = 0.0 if self.forwarded else 1.0
