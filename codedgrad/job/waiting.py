"""A wait for other workers that ends and says for whom.

Whatever a worker waits for, it polls, and calls `Waiting.tick` about once a second.
A tick logs who is missing, and gives up when those have left the job, when they wait
for this worker in turn (see `progress`), or when nothing has come for `timeout_s`. So
no wait hangs, and each error names a worker.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from codedgrad.errors import WorkerError
from codedgrad.job.progress import GRACE_S, Deadlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.errors import CodedGradError
    from codedgrad.job.progress import Announcement

log = logging.getLogger("codedgrad")


class Job(Protocol):
    """The part of a `Runtime` that a wait needs."""

    @property
    def engine(self) -> Any:
        """The engine, which knows who has left and what the others wait for."""

    @property
    def rank(self) -> int:
        """The number of the process that waits."""

    @property
    def unit(self) -> str:
        """What a rank is called in messages."""

    @property
    def timeout_s(self) -> float:
        """Seconds without news after which a wait is given up."""

    def places(self) -> dict[int, Announcement]:
        """Return who waits in a collective that this worker has not come to."""

    def fail(self, text: str) -> None:
        """End the job on every worker with this message."""

    def error(self) -> CodedGradError:
        """Return the job's first failure as an exception."""


class Waiting:
    """One wait for other workers, from its begin to its end.

    Args:
        job: whose workers are waited for.
        occasion: completes the sentence "worker 0 waits ... for worker(s) 3".
        quiet_s: seconds before the first message in the log.
        joined: every worker has to join this wait, so one that waits in a collective
            is waited for in vain. Exchanges look by themselves, and know the steps.
    """

    def __init__(
        self, job: Job, occasion: str, quiet_s: float = 1.0, *, joined: bool = False
    ) -> None:
        self.job = job
        self._deadlock = Deadlock(job, partial(give_up, job)) if joined else None
        self.occasion = occasion
        self.begin = time.monotonic()
        self._logged = self.begin + quiet_s - 1.0

    def tick(self, workers: Sequence[int]) -> None:
        """Look after the wait; to be called at least once a second.

        Args:
            workers: those who are still missing.

        Raises:
            WorkerError: they have left the job, or the time is over.
        """
        waited_s = self.seconds()
        job, unit, names = self.job, self.job.unit, self._names(workers)
        if workers and waited_s > GRACE_S:
            gone = [w for w in job.engine.departed if w in workers]
            if gone:
                give_up(job, f"{unit}(s) {gone} have left the job; {self.occasion}")
        if self._deadlock is not None:
            self._deadlock.look(self.occasion, among=workers)
        if waited_s > job.timeout_s:
            give_up(
                job,
                f"nothing came from {unit}(s) {names} for {waited_s:.0f} s "
                f"{self.occasion}; raise codedgrad.init(timeout_s=...) if that is "
                f"normal",
            )
        now = time.monotonic()
        if now - self._logged >= 1.0:
            self._logged = now
            text = f"{unit} {job.rank} waits {self.occasion} for {unit}(s) {names}"
            log.warning("%s, %.0f s so far", text, waited_s)

    def seconds(self) -> float:
        """Return the seconds since the wait began."""
        return time.monotonic() - self.begin

    def _names(self, workers: Sequence[int]) -> str:
        """Name the workers and, where they wait for others in turn, say for what."""
        places = self.job.places()
        words = [
            f"{worker} (which waits {places[worker].occasion})"
            if worker in places
            else str(worker)
            for worker in workers
        ]
        return ", ".join(words) or "none in particular"


def give_up(job: Job, text: str) -> None:
    """End a wait that has no end, and the job with it.

    Raises:
        WorkerError: always. If the job has failed meanwhile, its first failure is the
            reason: those who have left have left because of it.
    """
    if job.engine.failed:
        raise job.error()
    text = f"{job.unit} {job.rank} gave up: {text}"
    job.fail(text)
    raise WorkerError(text)
