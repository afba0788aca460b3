"""What late workers carry from one step into the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Lag:
    """What stalled workers carry from one step into the next."""

    def __init__(self, workers: int, window: int = 16) -> None:
        """`window`: steps that a worker may be behind before the others wait."""
        self.rest = np.zeros(workers)
        self._behind = np.zeros(workers, int)
        self._window = window

    def wait(self) -> float:
        """Time that the step's begin is held up by workers a window behind."""
        far = self._behind >= self._window
        held = float(self.rest[far].max(initial=0.0))
        self.rest = np.maximum(0.0, self.rest - held)
        return held

    def begin(self, stall: NDArray[np.float64]) -> NDArray[np.float64]:
        """When each worker can begin to compute, from the step's begin."""
        return self.rest + stall

    def end(
        self,
        stall: NDArray[np.float64],
        step: float,
        pace: NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> None:
        """The step took `step`; one that never began it has not met its stall."""
        never = self.rest >= step
        left = np.where(never, self.rest, self.rest + stall) - step
        self.rest = np.maximum(0.0, left)
        # One that began has skipped to this step first: it is behind by this one only.
        behind = np.where(never, self._behind + 1, 1)
        self._behind = np.where(self.rest > 0.0, behind, 0)


class Late(Lag):
    """Workers that are late time and again go on: a late row refreshes the memory.

    A late worker leaves its pass when the step is over; if no row of its own came in
    time for a quarter of a window of steps, it goes on with its next one, for half a
    window at most, and then skips to the present step. One that began after the step's
    begin never goes on: else one late pass would make all that follow late. A stall
    that is not over cannot be left.

    If every late worker went on, it would be late in the next step as well: on the two
    slowest of the Lambda logs, at 64 workers and max_error = 0.1, a step would take
    2.57 and 2.24 passes instead of 1.50 and 1.51.

    Attributes:
        work: [workers], what remains, after `rest`, of a pass of an earlier step.
        since: [workers], steps ago that that pass was begun; 0: there is none.
        missed: [workers], steps in a row whose gradient lacked the worker's row.
    """

    def __init__(self, workers: int, window: int = 16) -> None:
        """`window`: steps; at 1 nobody goes on."""
        super().__init__(workers, window)
        self.work = np.zeros(workers)
        self.since = np.zeros(workers, int)
        self.missed = np.zeros(workers, int)

    def wait(self) -> float:
        """As Lag; the others' late passes go on meanwhile."""
        before = self.rest
        held = super().wait()
        self.work = np.maximum(0.0, self.work - np.maximum(0.0, held - before))
        return held

    def begin(self, stall: NDArray[np.float64]) -> NDArray[np.float64]:
        """When each worker can begin to compute, from the step's begin."""
        skip = self.since > self._window // 2
        self.work = np.where(skip, 0.0, self.work)
        self.since = np.where(skip, 0, self.since)
        return self.rest + self.work + stall

    def end(
        self,
        stall: NDArray[np.float64],
        step: float,
        pace: NDArray[np.float64] | None = None,
    ) -> None:
        """The step took `step`; `pace`: of the workers, if some were left out."""
        free = self.rest + self.work
        busy = free >= step  # and has not begun this step
        carried = np.where(busy, np.minimum(self.work, free - step), 0.0)
        age = np.where(busy & (self.since > 0), self.since + 1, 0)
        if pace is None:
            self.missed = np.zeros_like(self.missed)
        elif self._window > 1:
            late = free + stall + pace > step
            self.missed = np.where(late, self.missed + 1, 0)
            on = late & (free <= 0.0) & (self.missed > self._window // 4)
            carried = np.where(on, np.minimum(pace, stall + pace - step), carried)
            age = np.where(on, 1, age)
        super().end(np.where(busy, 0.0, self.work + stall), step)
        self.work, self.since = carried, age
