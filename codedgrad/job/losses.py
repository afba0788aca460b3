"""Which workers are lost, and the words that the log has for it.

A worker is lost when its process has died, or its machine has. The engine finds that
out, and goes on without it where it can (docs/faults.md).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("codedgrad")


class Job(Protocol):
    """The part of a `Runtime` that is needed here."""

    @property
    def engine(self) -> Any:
        """The engine, which knows who is lost."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def size(self) -> int:
        """The number of processes at the start."""

    @property
    def unit(self) -> str:
        """What a rank is called in messages."""


class Losses:
    """The workers that the log has named."""

    def __init__(self, named: Iterable[int] = ()) -> None:
        """Begin with those that were named before."""
        self._named: set[int] = set(named)

    @property
    def ranks(self) -> list[int]:
        """The workers that were lost, as far as the log has named them."""
        return sorted(self._named)

    def look(self, job: Job, occasion: str) -> list[int]:
        """Return who is lost; the log names those who are new.

        Args:
            job: whose workers are looked at.
            occasion: where this worker is, such as "to begin step 3".
        """
        lost: dict[int, float] = job.engine.lost()
        if not lost:
            return []
        new = sorted(lost.keys() - self._named)
        if new:
            self._named.update(new)
            left = [w for w in range(job.size) if w not in lost]
            ago = time.monotonic() - min(lost[w] for w in new)
            # One of them says it; the others' words would be the same.
            level = logging.WARNING if job.rank == left[0] else logging.INFO
            who = f"{job.unit}(s) {', '.join(map(str, new))}"
            when = f"{ago:.2f} s ago, {occasion}"
            rest = f"{len(left)} of {job.size} go on"
            log.log(
                level,
                "%s are lost, their processes have died (%s); %s",
                who,
                when,
                rest,
            )
        return sorted(lost)
