"""How far each worker has come, and who cannot come any further.

A worker that waits in a collective (a barrier, a comparison, the end of the job) can
compute nothing until all others have come to it, too. If another worker waits in a step
that the first one has not made, the two wait for one another and neither wait can end:
the script runs another number of steps, or another collective, on one of them. With its
name for the collective each worker therefore publishes how many steps it has made in
every exchange, and whoever waits in a step compares.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("codedgrad")

AT_THE_END = "at the end of the job"
# What such a worker sent before may still be on its way when its announcement is here.
GRACE_S = 5.0
_NUL, _UNIT = b"\0", b"\x1f"


@dataclass
class StepCount:
    """Counts the steps of one exchange.

    Attributes:
        name: The name of the exchange, the same on every worker that takes part in it.
        steps: The number of steps that this worker has made: all below this are over.
    """

    name: str
    steps: int


@dataclass
class Progress:
    """The steps that this worker has made, in all of its exchanges that are open."""

    _counts: list[StepCount] = field(default_factory=list)
    _opened: dict[str, int] = field(default_factory=dict)

    def track(self, unit: str, steps: int) -> StepCount:
        """Return the count of a new exchange; all workers open them in the same order.

        Args:
            unit: What takes part in the exchange, a "worker" or a "group".
            steps: The number of its first step.
        """
        number = self._opened[unit] = self._opened.get(unit, 0) + 1
        count = StepCount(f"{unit}{number}", steps)
        self._counts.append(count)
        return count

    @property
    def open(self) -> int:
        """How many exchanges are open."""
        return len(self._counts)

    def restart(self) -> None:
        """Forget all exchanges, since all workers open new ones."""
        self._counts.clear()
        self._opened.clear()

    def forget(self, count: StepCount) -> None:
        """Drop the count of an exchange that is closed."""
        if count in self._counts:
            self._counts.remove(count)

    def encode(self) -> bytes:
        """Return all counts as bytes, for `decode_steps`."""
        return " ".join(f"{c.name}:{c.steps}" for c in self._counts).encode()


def decode_steps(data: bytes) -> dict[str, int]:
    """Return the steps by the name of the exchange, from `Progress.encode`."""
    pairs = (word.split(":") for word in data.decode().split())
    return {name: int(steps) for name, steps in pairs}


class Announcement(NamedTuple):
    """What a worker publishes when it waits in a collective.

    Attributes:
        occasion: The words that complete the sentence "worker 0 waits ...".
        steps: The steps that it has made, by the name of the exchange.
        data: What it gives to the collective.
    """

    occasion: str
    steps: dict[str, int]
    data: bytes

    @classmethod
    def encode(cls, occasion: str, progress: Progress, data: bytes) -> bytes:
        """Return the bytes that are published."""
        steps = progress.encode()
        head = occasion.encode() + (_UNIT + steps if steps else b"")
        return head + _NUL + data

    @classmethod
    def decode(cls, blob: bytes) -> Announcement:
        """Read what a worker has published."""
        head, _, data = blob.partition(_NUL)
        occasion, _, steps = head.partition(_UNIT)
        return cls(occasion.decode(), decode_steps(steps), data)

    def describe(self, made: int | None = None) -> str:
        """Complete the sentence "worker 1 ..."; `made` steps, if that is known."""
        ended = self.occasion == AT_THE_END
        what = "has ended its training" if ended else f"waits {self.occasion}"
        after = "" if made is None else f" after {made} step(s)"
        return f"{what}{after}" + (f" and waits {AT_THE_END}" if ended else "")


class Job(Protocol):
    """The part of a `Runtime` that a `Deadlock` needs."""

    @property
    def rank(self) -> int:
        """The number of the process that waits."""

    @property
    def unit(self) -> str:
        """What a rank is called in messages."""

    def places(self) -> dict[int, Announcement]:
        """Return who waits in a collective that this worker has not come to."""


class Deadlock:
    """Finds workers that wait for this one while this one waits for them.

    Args:
        job: Whose workers are looked at.
        give_up: Is called with a text when such a worker has not moved for `GRACE_S`.
        count: The exchange in which this worker waits. None stands for a wait that
            every worker has to join, whatever step it is in.
    """

    def __init__(
        self, job: Job, give_up: Callable[[str], None], count: StepCount | None = None
    ) -> None:
        self._job, self._give_up, self._count = job, give_up, count
        self._since: dict[int, float] = {}

    def look(
        self, occasion: str, step: int = 0, among: Sequence[int] | None = None
    ) -> None:
        """Compare what this worker does with what the others have announced.

        Args:
            occasion: Completes the sentence "worker 0 waits ...".
            step: The step in which this worker is, where there is a count.
            among: The workers that are waited for; None stands for all.
        """
        places = self._job.places()
        if not places:  # nobody waits, as in nearly every step
            self._since = {}
            return
        stuck = {
            worker: place
            for worker, place in places.items()
            if worker != self._job.rank
            and (among is None or worker in among)
            and self._misses(place, step)
        }
        now, before = time.monotonic(), self._since
        self._since = {w: before.get(w, now) for w in stuck}
        if not stuck:
            return
        unit, rank = self._job.unit, self._job.rank
        who = " and ".join(f"{unit} {w}, which {self._of(p)}" for w, p in stuck.items())
        text = f"it waits {occasion} for {who}"
        if stuck.keys() - before.keys():
            log.warning("%s %d: %s; %s", unit, rank, text, self._outlook())
        if any(now - since > GRACE_S for since in self._since.values()):
            self._give_up(
                f"{text}. Run the same number of steps, and the same barriers and "
                f"other collectives between them, on every worker"
            )

    def _outlook(self) -> str:
        """Return what comes of it: a step may need nobody who is missed."""
        if self._count is None:
            return "neither can go on"
        return (
            "it never comes to this step. Where others may compute its part, they go "
            "on for at most `window` steps, and then the job ends with an error"
        )

    def _misses(self, place: Announcement, step: int) -> bool:
        """Return whether a worker at this place has not made the step."""
        if self._count is None:
            return True
        return place.steps.get(self._count.name, step + 1) <= step

    def _of(self, place: Announcement) -> str:
        name = None if self._count is None else self._count.name
        return place.describe(None if name is None else place.steps.get(name))


def uneven(unit: str, every: list[dict[str, int]]) -> str | None:
    """Return which workers have made fewer steps than others; None if none has.

    Args:
        unit: What a rank is called in messages.
        every: The steps of each worker, by the name of the exchange.
    """
    for name in sorted({name for steps in every for name in steps}):
        made = {w: steps[name] for w, steps in enumerate(every) if name in steps}
        most = max(made.values())
        fewer = [f"{unit} {w} made {n}" for w, n in made.items() if n < most]
        if fewer:
            return (
                f"the workers did not make the same number of steps: {most} were made, "
                f"but {', '.join(fewer)}; the model there is that of an earlier step"
            )
    return None
