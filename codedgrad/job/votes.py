"""A question that all workers answer while they train, and nobody waits for.

A vote is a round of the engine's gather() that is published early and collected late.
What it brings is the same on all workers that are left, as for any round, also where
one has died meanwhile. So all may decide by it, each for itself.

Rounds come in order: a collective that begins in between collects the vote first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from codedgrad.job.progress import Announcement

if TYPE_CHECKING:
    from codedgrad.job.progress import Progress

OCCASION = "for the vote on who comes back"


class Job(Protocol):
    """The part of a `Runtime` that is needed here."""

    @property
    def engine(self) -> Any:
        """The engine, which carries the rounds."""

    @property
    def progress(self) -> Progress:
        """The steps that this process has made."""

    def collected(self, occasion: str) -> list[bytes | None]:
        """Wait for a round that this process has published."""

    def poll_gather(self, wait_s: float) -> tuple[list[bytes | None] | None, list[int]]:
        """Wait a moment for a round."""


class Votes:
    """The vote of this worker that is under way, or whose answer nobody has taken."""

    def __init__(self) -> None:
        """Begin without one."""
        self._open = False
        self._found: list[bytes | None] | None = None

    def cast(self, job: Job, data: bytes) -> None:
        """Say what this worker votes. All workers do so at the same place."""
        job.engine.publish(Announcement.encode(OCCASION, job.progress, data))
        self._open, self._found = True, None

    def look(self, job: Job) -> None:
        """Collect the vote if it is complete, so that later rounds can be seen."""
        if self._open:
            blobs, _ = job.poll_gather(0.0)
            if blobs is not None:
                self._collect(blobs)

    def settle(self, job: Job) -> None:
        """Wait until the vote is complete, if there is one."""
        if self._open:
            self._open = False  # who waits looks at who is missing, and does not `look`
            self._collect(job.collected(OCCASION))

    def take(self, job: Job) -> list[bytes | None] | None:
        """Return what each worker has voted, by rank; None: there was no vote.

        A worker that was lost before it voted has voted None.
        """
        self.settle(job)
        found, self._found = self._found, None
        return found

    def _collect(self, blobs: list[bytes | None]) -> None:
        self._open = False
        self._found = [
            None if blob is None else Announcement.decode(blob).data for blob in blobs
        ]
