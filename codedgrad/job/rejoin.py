"""A process in the place of a lost worker, and how the job lets it in.

The process runs the script from its start, *outside* of the job: with an engine that
talks to nobody. Where it is let in, all workers make new connections and a new engine,
as at the start of a job, and leave the old one (docs/faults.md). So there is nothing
that a worker that comes back could have missed.

Here are the parts of that which know nothing of training; `codedgrad.groups.comeback`
puts them together.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.errors import ConfigError, WorkerError
from codedgrad.job import environment
from codedgrad.job.losses import Losses
from codedgrad.job.place import Place
from codedgrad.job.runtime import Link, Runtime
from codedgrad.job.sockets.channel import SocketChannel
from codedgrad.job.sockets.desk import Asker
from codedgrad.job.sockets.lines import Lines, to_nobody
from codedgrad.job.votes import Votes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.job.channel import Channel
    from codedgrad.job.sockets.world import World

log = logging.getLogger("codedgrad")

_CONNECT_S = 5.0  # until all workers have connected; they are all there
_ENTRY_S = 60.0  # until the state is packed, sent and loaded
_STOP_S = 30.0  # until the engine before has sent all that it still has to send
_NAP_S = 0.02
_SAY_S = 10.0
_USUAL = Link(1e-4, 1e-3)  # outside, where nothing can be measured
_OUTSIDE = (
    "this process takes the place of worker {}, which was lost, and has not entered "
    "the job that runs. It does so in `for epoch in coded.epochs(sampler, n)`, so the "
    "script must come there without an allreduce, an evaluation or another exchange of "
    "values; barriers and broadcast_parameters do nothing here (docs/faults.md)"
)


def process_of(channel: Channel) -> int:
    """Return which process of its worker this is; 0: a first one."""
    world = world_of(channel)
    return 0 if world is None else world.process or 0


def world_of(channel: Channel) -> World | None:
    """Return the world in which workers are started again; None: there is none."""
    if not isinstance(channel, SocketChannel) or channel.world.process is None:
        return None
    return channel.world


def outside(channel: Channel, timeout_s: float, min_workers: int) -> Runtime:
    """Return the runtime of a process that has yet to enter the job."""
    from codedgrad.job import _engine

    rank, size = channel.rank, channel.size
    fds, others = to_nobody(rank, size)
    engine = _engine.Engine.over_sockets(rank, fds, environment.max_tag())
    log.info("worker %d is to come back into a job that runs", rank)
    return Runtime(
        place=Place(rank, size, rank, size),  # all run on one machine
        channel=channel,
        engine=engine,
        timeout_s=timeout_s,
        min_workers=min_workers,
        link=_USUAL,
        outside=_OUTSIDE.format(rank),
        parts={"what keeps the engine's sockets open": _Kept(others)},
    )


class _Kept:
    """Something that lives until the process enters the job, or leaves."""

    def __init__(self, things: object) -> None:
        self._things: object = things

    def stop(self, timeout_s: float) -> bool:
        """See `codedgrad.job.runtime.Part`."""
        del timeout_s
        return True


class Entry(NamedTuple):
    """How a process enters; the others write it down for it.

    Attributes:
        rank: its worker.
        process: which process of that worker it is.
        attempt: which try of it this is.
        step: the first step with it.
        ranks: all workers from then on.
        donor: the worker that gives it the state.
        link: the cost of a message, as the others have measured it; None: nobody has.
        within: seconds for all of it: connections, packing, sending and loading.
    """

    rank: int
    process: int
    attempt: int
    step: int
    ranks: list[int]
    donor: int
    link: list[float] | None
    within: float

    @property
    def mesh(self) -> str:
        """The name of the connections, which is used once."""
        return f"entry {self.rank}.{self.process}.{self.attempt}"

    def encode(self) -> str:
        """Return the text that is written down."""
        return json.dumps(self._asdict())


def within(timeout_s: float) -> float:
    """Return how long the others may be kept by one that enters, in seconds.

    They wait for the donor meanwhile, each for `timeout_s` at most: a process that is
    too slow is not let in, long before the job would end.
    """
    return min(_ENTRY_S, timeout_s / 2)


def connect(job: Runtime, entry: Entry) -> Lines:
    """Return lines to all workers of an entry. Collective over them.

    Raises:
        WorkerError: one of them has gone, or did not come.
        EnvironmentSetupError: one of them does not take this worker.
    """
    world = world_of(job.channel)
    assert world is not None
    for rank in entry.ranks:
        world.look_up(rank)
    wait_s = min(_CONNECT_S, entry.within)
    return Lines(world.connect(entry.mesh, entry.ranks, wait_s), entry.ranks)


def move(job: Runtime, entry: Entry, lines: Lines, there: Sequence[int]) -> None:
    """Go on over these lines, with a new engine, and end the one before.

    Args:
        job: this process.
        entry: who enters.
        lines: of the entry; they are taken over.
        there: the other workers that are known to have their lines still.
    """
    from codedgrad.job import _engine

    world = world_of(job.channel)
    assert world is not None
    fds = lines.hand_over(job.rank, job.size, there)
    before = job.engine
    job.engine = _engine.Engine.over_sockets_of_some(
        job.rank, fds, environment.max_tag(), job.min_workers
    )
    # A name is used once, and the lines have had the entry's.
    job.channel = SocketChannel(world, f"after the {entry.mesh}", range(job.size))
    if job.outside:
        before.stop(0.0)
    elif not before.stop(min(_STOP_S, job.timeout_s / 2)):
        log.warning("the engine before was not left by all; its memory is kept")
    job.losses = Losses(w for w in range(job.size) if w not in entry.ranks)
    job.link = None if entry.link is None else Link(*entry.link)
    job.outside, job.absent, job.votes = "", [], Votes()
    job.forget_present()
    job.progress.restart()
    job.parts.clear()


def wait_for_answer(job: Runtime, what: str, attempt: int) -> Entry:
    """Ask to be let in, and return how. Outside only.

    Args:
        job: this process.
        what: what it is, for the others to compare.
        attempt: how often it has asked, this time included.

    Raises:
        ConfigError: the others do not take it; it says why.
        NotNow: something went wrong meanwhile, and it may ask again.
        WorkerError: nobody has answered for `timeout_s`.
    """
    world = world_of(job.channel)
    assert world is not None
    assert world.desk is not None
    desk, who = world.desk, Asker(job.rank, world.process or 0, attempt)
    desk.ask(who, what)
    begin = said = time.monotonic()
    while (answer := desk.answered(who)) is None:
        now = time.monotonic()
        if now - begin > job.timeout_s:
            raise WorkerError(
                f"nobody has let worker {job.rank} in for {now - begin:.0f} s. Workers "
                f"look who asks within `coded.steps` every `window` "
                f"steps; raise codedgrad.init(timeout_s=...) if these take longer"
            )
        if now - said > _SAY_S:
            said = now
            log.warning(
                "worker %d waits to be let in, %.0f s so far", job.rank, now - begin
            )
        time.sleep(_NAP_S)
    return read(answer)


def read(answer: str) -> Entry:
    """Return how a process enters, from what the others have written down.

    Raises:
        ConfigError: it is not let in; with the reason.
        NotNow: it may ask again.
    """
    found: dict[str, Any] = json.loads(answer)
    if "refused" in found:
        raise (NotNow if found["again"] else ConfigError)(str(found["refused"]))
    return Entry(**found)


def refuse(why: str, *, again: bool) -> str:
    """Return the text that is written down for a process that is not let in.

    Args:
        why: the reason.
        again: whether it may ask again.
    """
    return json.dumps({"refused": why, "again": again})


class NotNow(WorkerError):
    """A process was not let in for a reason that another try may not meet."""
