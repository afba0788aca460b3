"""The job as one of its processes sees it: who it is, how many there are, the engine.

`lifecycle.init` makes the `Runtime` of the process, `current` returns it, and
everything that talks to other workers is handed it. `Runtime.gather` is the one
collective that most of the package needs: it goes through the engine, which the
failure of another worker interrupts.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from codedgrad.errors import (
    ConfigError,
    EnvironmentSetupError,
    MismatchError,
    WorkerError,
)
from codedgrad.job import environment, votes
from codedgrad.job.losses import Losses
from codedgrad.job.place import Place
from codedgrad.job.progress import Announcement, Progress, StepCount
from codedgrad.job.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from codedgrad.job.channel import Channel

DISAGREE = "the workers disagree about the "  # every MismatchError begins so
_POLL_S = 1.0  # how often a wait in the engine comes back to look around


class Part(Protocol):
    """Something that a feature has set up for the whole job and that ends with it."""

    def stop(self, timeout_s: float) -> bool:
        """End it; return True if nothing of it is under way any more."""


class Link(NamedTuple):
    """The cost of a message: exchanging s MiB takes `latency_s + s_per_mb * s`."""

    latency_s: float
    s_per_mb: float

    @property
    def latency_mb(self) -> float:
        """How much could be sent in the time of the latency, in MiB."""
        return self.latency_s / self.s_per_mb


@dataclass(kw_only=True)
class Runtime:
    """This process in its job. There is one per process, and one more for groups.

    Attributes:
        place: the numbers of this process.
        channel: the few collectives among the workers.
        engine: a `codedgrad.job._engine.Engine`, over a communicator of its own.
        timeout_s: seconds without news after which a wait for others is an error.
        unit: what a rank is called in messages.
        parts: what features have set up for the whole job, by name.
        link: the cost of a message, once `exchange.link` has measured it.
        in_pass: whether passes are computed now, in which nothing is collective.
        unlike: whether `likeness.compare_hardware` has found unlike workers.
        progress: the steps that this process has made.
        outer: the runtime of the whole job, and the ranks in it of these processes;
            None in the runtime of the whole job.
        min_workers: how many must be left for the job to go on.
        losses: which workers this one knows to be lost.
        absent: those that gave nothing to the last `gather`; all agree about them.
        outside: why nothing collective can be done: this process takes the place of a
            worker that was lost, and has not entered the job yet. Else "".
        votes: the question that all workers answer now and then.
    """

    place: Place
    channel: Channel
    engine: Any
    timeout_s: float
    unit: str = "worker"
    parts: dict[str, Part] = field(default_factory=dict)
    link: Link | None = None
    in_pass: bool = False
    unlike: bool = False
    progress: Progress = field(default_factory=Progress)
    outer: tuple[Runtime, Sequence[int]] | None = None
    min_workers: int = 1
    losses: Losses = field(default_factory=Losses)
    absent: list[int] = field(default_factory=list)
    outside: str = ""
    votes: votes.Votes = field(default_factory=votes.Votes)
    _left: tuple[list[int], Channel] | None = None

    @property
    def rank(self) -> int:
        """The number of this process, 0 to size - 1."""
        return self.place.rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.place.size

    def over(self, channel: Channel, unit: str, ranks: Sequence[int]) -> Runtime:
        """Return a runtime of some of these processes, with an engine of its own.

        Args:
            channel: connects those processes; the engine takes it over.
            unit: what one of them is called in messages.
            ranks: the ranks in this runtime of those processes, in their order.
        """
        return Runtime(
            place=Place(channel.rank, channel.size),
            channel=channel,
            engine=channel.start_engine(environment.max_tag()),
            timeout_s=self.timeout_s,
            unit=unit,
            progress=self.progress,
            outer=(self, ranks),
        )

    def track(self, first_step: int) -> StepCount:
        """Return the count of steps of a new exchange of these processes."""
        return self.progress.track(self.unit, first_step)

    def places(self) -> dict[int, Announcement]:
        """Return who waits in a collective that this worker has not come to."""
        self.votes.look(self)
        blobs = self.engine.announced()
        told = {w: Announcement.decode(blob) for w, blob in blobs.items()}
        # Who has voted trains on.
        places = {w: one for w, one in told.items() if one.occasion != votes.OCCASION}
        if self.outer is not None:
            job, ranks = self.outer
            theirs = job.places()
            for rank, outer_rank in enumerate(ranks):
                if outer_rank in theirs:
                    places.setdefault(rank, theirs[outer_rank])
        return places

    def outlive(self) -> None:
        """Go on from now on where a worker is lost, as far as its exchanges let it."""
        if self.outer is None and self.channel.mark_survivor():
            self.engine.survive(self.min_workers)

    def gather(self, data: bytes, occasion: str) -> list[bytes]:
        """Collect a small byte string from each worker. Collective.

        For what is compared: a worker that is lost gives what the first one gives that
        is left; else see `gather_from_all`. A process that has not entered the job
        compares with itself, and with the others when it enters.
        """
        if self.outside:
            self.check()
            return [data] * self.size
        blobs = self.gather_from_all(data, occasion)
        first = next(blob for blob in blobs if blob is not None)
        return [first if blob is None else blob for blob in blobs]

    def gather_from_all(self, data: bytes, occasion: str) -> list[bytes | None]:
        """Collect a small byte string from each worker. Collective.

        A worker that fails or leaves ends the wait with an error.

        Args:
            data: what this worker gives.
            occasion: completes the sentence "worker 0 waits ...". It travels with the
                data: workers that wait on different occasions are told so.

        Returns:
            The data of all workers, by rank, the same on all of them; None for one that
            was lost before it gave any.

        Raises:
            WorkerError: a worker failed, or did not come within `timeout_s`.
            MismatchError: the workers wait on different occasions.
            ConfigError: it was called in a pass.
        """
        self.check()
        if self.outside:
            raise ConfigError(f"it cannot wait {occasion}: {self.outside}")
        if self.in_pass:
            raise ConfigError(
                f"the loss function, or a module that it calls, wants to wait for all "
                f"workers ({occasion}). Which passes a worker computes depends on who "
                f"is late, so that wait has no end: reduce and compare between the "
                f"steps, return metrics beside the loss, and use plain batch norm"
            )
        self.votes.settle(self)
        self.engine.publish(Announcement.encode(occasion, self.progress, data))
        blobs = self.collected(occasion)
        self.absent = [w for w, blob in enumerate(blobs) if blob is None]
        if self.absent:
            self.losses.look(self, occasion)
        told = [None if blob is None else Announcement.decode(blob) for blob in blobs]
        places = [(w, one.occasion) for w, one in enumerate(told) if one is not None]
        if any(place != places[0][1] for _, place in places):
            text = "; ".join(f"{self.unit} {w} {place}" for w, place in places)
            raise MismatchError(
                f"the workers are at different places: {text}. Run the same script "
                f"with the same arguments on every worker."
            )
        return [None if one is None else one.data for one in told]

    def collected(self, occasion: str) -> list[bytes | None]:
        """Wait for a round that this process has published; see `gather_from_all`."""
        waiting = Waiting(self, occasion, quiet_s=5.0)
        while True:
            blobs, missing = self.poll_gather(_POLL_S)
            if blobs is not None:
                return blobs
            waiting.tick(missing)

    def present(self) -> tuple[Channel, list[int]]:
        """Return a channel of those who are not absent, and their ranks. Collective."""
        ranks = [w for w in range(self.size) if w not in self.absent]
        if not self.absent:
            return self.channel, ranks
        if self._left is None or self._left[0] != ranks:
            self._left = ranks, self.channel.of_ranks(ranks)
        return self._left[1], ranks

    def forget_present(self) -> None:
        """Forget the channel of `present`, since workers have come back."""
        self._left = None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, passes are computed, and `gather` is refused."""
        self.in_pass = True
        try:
            yield
        finally:
            self.in_pass = False

    def fail(self, text: str) -> None:
        """End the job on every worker with this message; nothing if it has failed.

        Where there is one worker, nobody waits for it: the exception that its caller
        raises is all there is to a failure, and the next call may succeed, as in the
        next cell of a notebook.
        """
        if self.size > 1 or self.outer is not None:
            self.engine.fail(text)

    def error(self) -> WorkerError | MismatchError:
        """Return the job's first failure as an exception."""
        return failure(self.engine.failure)

    def check(self) -> None:
        """Refuse to begin anything more in a job that has failed.

        Raises:
            WorkerError: with the failure and the remedy.
        """
        if self.engine.failed:
            error = self.error()
            error.args = (
                f"{error}. With this the job has ended on all workers: start it "
                f"again, in a notebook with new kernels on every worker",
            )
            raise error

    def poll_gather(self, wait_s: float) -> tuple[list[bytes | None] | None, list[int]]:
        """Wait a moment; return what has come, or None and who is missing."""
        from codedgrad.job import _engine

        try:
            blobs, missing = self.engine.gather(wait_s)
        except _engine.EngineFailure as error:
            raise failure(str(error)) from None
        return blobs, missing


def failure(text: str) -> WorkerError | MismatchError:
    """Return the exception for the message with which a job has failed.

    A worker that finds alone that the workers disagree tells it to the others; all
    raise a MismatchError then.
    """
    if text.startswith(DISAGREE):
        error = MismatchError(text)
        error.everywhere = True
        return error
    return WorkerError(text)


_current: Runtime | None = None


def current() -> Runtime:
    """Return the runtime of this process.

    Raises:
        EnvironmentSetupError: `codedgrad.init()` has not been called.
    """
    if _current is None:
        raise EnvironmentSetupError(
            "codedgrad is not initialised; call codedgrad.init() first"
        )
    return _current


def find_current() -> Runtime | None:
    """Return the runtime of this process, or None before `init`."""
    return _current


def set_current(runtime: Runtime | None) -> None:
    """Make this the runtime of this process; called by `lifecycle` only."""
    global _current
    _current = runtime


def rank() -> int:
    """Return the number of this worker, 0 to size() - 1."""
    return current().rank


def size() -> int:
    """Return the number of workers in the job."""
    return current().size


def local_rank() -> int:
    """Return the number of this worker on its machine, 0 to local_size() - 1."""
    return current().place.local_rank


def local_size() -> int:
    """Return the number of workers on this machine."""
    return current().place.local_size


def cross_rank() -> int:
    """Return the number of this machine, 0 to cross_size() - 1.

    Machines are counted in the order of their first workers.
    """
    return current().place.cross_rank


def cross_size() -> int:
    """Return the number of machines in the job."""
    return current().place.cross_size


def lost_workers() -> list[int]:
    """Return the workers that are lost for good, in order; see docs/faults.md.

    Workers hear of a loss at different moments, so this is for the log, and for the
    choice of who writes a file: that of the first worker that is not lost, say.
    """
    return sorted(current().engine.lost())


def leads() -> bool:
    """Return whether this is the first worker that is not lost.

    Save checkpoints there, in place of worker 0, where workers may be lost.
    """
    if current().outside:  # the others have a first one
        return False
    lost = lost_workers()
    return rank() == next(w for w in range(size()) if w not in lost)


def barrier() -> None:
    """Wait until all workers have called this, but those that are lost. Collective.

    Raises:
        WorkerError: a worker failed, or did not come within `timeout_s`.
        MismatchError: other workers wait for something else.
    """
    current().gather(b"", "in a barrier")
