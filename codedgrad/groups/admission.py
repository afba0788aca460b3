"""Letting one process in, on one of the workers that train; see `comeback`."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from codedgrad.errors import CodedGradError
from codedgrad.job import rejoin
from codedgrad.job.rejoin import Entry

if TYPE_CHECKING:
    from codedgrad.groups.comeback import Comeback, Training
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.sockets.desk import Asker
    from codedgrad.job.sockets.lines import Lines
    from codedgrad.job.sockets.world import World

log = logging.getLogger("codedgrad")

LOAD_S = 60.0  # until the state is packed, or loaded


class Admission:
    """One process that is let in, on one of the workers that train."""

    def __init__(self, comeback: Comeback, job: Runtime, world: World) -> None:
        self._comeback, self._job, self._world = comeback, job, world

    def admit(self, training: Training, who: Asker) -> None:
        """Let it in, or go on as before. Collective over those that are left."""
        job, rank = self._job, who.rank
        begin, occasion = time.monotonic(), f"to let worker {rank} in"
        # The vote was some steps ago, perhaps in another loop, and some may be lost.
        why = self._comeback.why_not(self._world, training, who)
        every = job.gather_from_all(why.encode(), occasion)
        if wrong := [blob.decode() for blob in every if blob]:
            self._comeback.refuse(self._world, who, wrong[0])
            return
        there = [w for w, blob in enumerate(every) if blob is not None]
        entry = Entry(
            **who._asdict(),
            step=training.step,
            ranks=sorted({*there, rank}),
            donor=there[0],
            link=None if job.link is None else list(job.link),
        )
        lines, problem = self._connect(training, who, entry)
        every = job.gather_from_all(problem.encode(), occasion)
        wrong = [blob.decode() for blob in every if blob]
        if every[entry.donor] is None:
            wrong.append(f"worker {entry.donor}, which gave it the state, was lost")
        if wrong or lines is None:
            if lines is not None:
                lines.close()
            self._comeback.refuse(self._world, who, wrong[0], again=True)
            return
        self._go_on(training, entry, lines)
        if job.rank == entry.donor:
            log.warning(
                "worker %d is back, from step %d on; %d of %d work (%.2f s)",
                *(rank, entry.step, len(entry.ranks), job.size),
                time.monotonic() - begin,
            )

    def _connect(
        self, training: Training, who: Asker, entry: Entry
    ) -> tuple[Lines | None, str]:
        """Return the lines, and what has gone wrong, or ""."""
        assert self._world.desk is not None
        self._world.desk.answer(who, entry.encode(), self._job.rank)
        lines: Lines | None = None
        try:
            lines = rejoin.connect(self._job, entry)
            if self._job.rank == entry.donor:
                return lines, self._give(training, who.rank, lines)
        except (CodedGradError, OSError) as error:
            return lines, str(error) or type(error).__name__
        return lines, ""

    def _give(self, training: Training, rank: int, lines: Lines) -> str:
        """Give the state away; return what the new process says of it, or ""."""
        try:
            data = self._comeback.packed(training)
        except Exception as error:  # noqa: BLE001 (an object of the user's)
            return f"the state cannot be packed: {type(error).__name__}: {error}"
        lines.say(rank, data)
        return lines.hear(rank, LOAD_S).decode()

    def _go_on(self, training: Training, entry: Entry, lines: Lines) -> None:
        before = training.arrangement
        lines.say_yes(entry.rank)  # from here on there is no way back, for anybody
        before.close(f"to begin step {entry.step} with worker {entry.rank}")
        rejoin.move(self._job, entry, lines, entry.ranks)
        training.go_on(before.anew(entry.step), entry.step)
