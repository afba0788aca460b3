"""Letting one process in, on one of the workers that train; see `comeback`."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from codedgrad.errors import CodedGradError
from codedgrad.job import rejoin
from codedgrad.job.rejoin import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.groups.comeback import Comeback, Training
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.sockets.desk import Asker
    from codedgrad.job.sockets.lines import Lines
    from codedgrad.job.sockets.world import World

log = logging.getLogger("codedgrad")


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
            within=rejoin.within(job.timeout_s),
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
        """Return the lines, and what has gone wrong, or "".

        All of it ends by the entry's limit, for the others wait for it.
        """
        assert self._world.desk is not None
        until = time.monotonic() + entry.within
        lines: Lines | None = None
        try:
            # Where it cannot be written (a full disk), it is a reason like any other.
            self._world.desk.answer(who, entry.encode(), self._job.rank)
            lines = rejoin.connect(self._job, entry)
            if self._job.rank == entry.donor:
                lines.limit(until)
                return lines, self._give(training, who.rank, lines, until)
        except (CodedGradError, OSError) as error:
            return lines, str(error) or type(error).__name__
        return lines, ""

    def _give(self, training: Training, rank: int, lines: Lines, until: float) -> str:
        """Give the state away; return what the new process says of it, or ""."""
        try:
            pack = self._comeback.packing(training)
            data = _result_by(until, pack)
        except Exception as error:  # noqa: BLE001 (an object of the user's)
            return f"the state cannot be packed: {type(error).__name__}: {error}"
        lines.say(rank, data)
        return lines.hear(rank, until - time.monotonic()).decode()

    def _go_on(self, training: Training, entry: Entry, lines: Lines) -> None:
        before = training.arrangement
        lines.say_yes(entry.rank)  # from here on there is no way back, for anybody
        before.close(f"to begin step {entry.step} with worker {entry.rank}")
        rejoin.move(self._job, entry, lines, entry.ranks)
        training.go_on(before.anew(entry.step), entry.step)


def _result_by(until: float, make: Callable[[], bytes]) -> bytes:
    """Return what `make` does, which a thread of its own calls, for it may be slow.

    Raises:
        TimeoutError: it is not there by then; the thread ends some time later.
    """
    made: list[bytes | BaseException] = []

    def call() -> None:
        try:
            made.append(make())
        except BaseException as error:  # noqa: BLE001 (raised below)
            made.append(error)

    begin = time.monotonic()
    thread = threading.Thread(target=call, name="codedgrad packs", daemon=True)
    thread.start()
    thread.join(max(until - begin, 0.0))
    if not made:
        raise TimeoutError(
            f"it has taken more than {time.monotonic() - begin:.1f} s, and all others "
            f"wait for it; raise codedgrad.init(timeout_s=...), of which half is given"
        )
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]
