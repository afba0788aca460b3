"""What late workers carry from one step into the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Lag:
    """The stalls that workers carry from one step into the next.

    Attributes:
        rest: [workers], how much longer each is stalled.
    """

    def __init__(self, workers: int, window: int = 16) -> None:
        """Let workers be `window` steps behind before the others wait for them."""
        self.rest = np.zeros(workers)
        self._behind = np.zeros(workers, int)
        self._window = window

    def wait(self) -> float:
        """Return how long workers that are a window behind hold up the step's begin."""
        far = self._behind >= self._window
        held = float(self.rest[far].max(initial=0.0))
        self.rest = np.maximum(0.0, self.rest - held)
        return held

    def begin(self, stall: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when each worker can begin to compute, after the step's begin."""
        return self.rest + stall

    def end(
        self,
        stall: NDArray[np.float64],
        step: float,
        pace: NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> None:
        """End a step that took `step`.

        A worker that has not begun the step has not met the step's stall either.
        """
        never = self.rest >= step
        left = np.where(never, self.rest, self.rest + stall) - step
        self.rest = np.maximum(0.0, left)
        # A worker that began this step had skipped to it, and is behind by it alone.
        behind = np.where(never, self._behind + 1, 1)
        self._behind = np.where(self.rest > 0.0, behind, 0)


class Late(Lag):
    """As Lag, but workers that are late again and again finish their late passes.

    A late row refreshes the owners' memory. A late worker leaves its pass when the step
    is over. If no row of its own came in time for a quarter of a window of steps, it
    goes on with its next pass, for half a window at most, and then skips to the present
    step. A worker that began after the step's begin never goes on, since one late pass
    would otherwise make all that follow late. A stall that is not over cannot be left.

    If every late worker went on it would be late in the next step as well: on the two
    slowest of the Lambda logs, at 64 workers and max_error = 0.1, a step would take
    2.57 and 2.24 passes instead of 1.50 and 1.51.

    Attributes:
        work: [workers], what remains, after `rest`, of a pass of an earlier step.
        since: [workers], how many steps ago that pass was begun; 0 if there is none.
        missed: [workers], steps in a row whose gradient lacked the worker's row.
    """

    def __init__(self, workers: int, window: int = 16) -> None:
        """Take the window in steps; at 1 no worker goes on with a late pass."""
        super().__init__(workers, window)
        self.work = np.zeros(workers)
        self.since = np.zeros(workers, int)
        self.missed = np.zeros(workers, int)

    def wait(self) -> float:
        """Wait as Lag does; the others' late passes go on meanwhile."""
        before = self.rest
        held = super().wait()
        self.work = np.maximum(0.0, self.work - np.maximum(0.0, held - before))
        return held

    def begin(self, stall: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when each worker can begin to compute, after the step's begin."""
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
        """End a step that took `step`.

        `pace` [workers] is given if workers were left out of the step.
        """
        free = self.rest + self.work
        busy = free >= step  # these workers have not begun this step
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
