"""The job: who am I, how many are we, and the engine that all exchanges share."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from codedgrad.errors import EnvironmentSetupError, MismatchError, WorkerError
from codedgrad.job import environment, startup

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

log = logging.getLogger("codedgrad")

_GONE_GRACE_S = 5.0
_LEAVE_S = 5.0  # for the others, at the end
_FAILURE_GRACE_S = 3.0  # for all workers to hear of a failure and say so


class Part(Protocol):
    """What a feature has set up for the whole job and that ends with it."""

    def stop(self, timeout_s: float) -> bool:
        """End it, as `Engine.stop`; True when nothing is under way any more."""


class Link(NamedTuple):
    """The exchange of s MiB takes `latency_s` + `s_per_mb` * s."""

    latency_s: float
    s_per_mb: float

    @property
    def latency_mb(self) -> float:
        """How much could be sent in the time of the latency, in MiB."""
        return self.latency_s / self.s_per_mb


@dataclass
class Runtime:
    """What `init` sets up; one per process."""

    comm: Any  # mpi4py communicator, used by this package only
    engine: Any  # codedgrad.job._engine.Engine
    rank: int
    size: int
    local_rank: int
    local_size: int
    timeout_s: float
    cross_rank: int = 0
    cross_size: int = 1
    unit: str = "worker"  # what a rank is, in messages
    parts: dict[str, Part] = field(default_factory=dict)
    link: Link | None = None  # what a message costs, once measured (see `link`)

    def over(self, comm: Any, unit: str) -> Runtime:
        """A runtime with an engine of its own over `comm`, some of this one's ranks."""
        return Runtime(
            comm=comm,
            engine=type(self.engine).over_mpi(comm.py2f()),
            rank=comm.Get_rank(),
            size=comm.Get_size(),
            local_rank=0,
            local_size=1,
            timeout_s=self.timeout_s,
            unit=unit,
        )

    def gather(self, data: bytes, what: str) -> list[bytes]:
        """All-gather of small byte strings that no failed worker can hang.

        Args:
            data: this worker's.
            what: says what is waited for, in "worker 0 waits WHAT".

        Raises:
            WorkerError: a worker failed, or did not come within `timeout_s`.
            MismatchError: the workers wait for different things.
        """
        self.engine.publish(what.encode() + b"\0" + data)
        waiting = Waiting(self, what, quiet_s=5.0)
        while True:
            got, missing = self._interruptible(self.engine.gather, 1.0)
            if got is not None:
                break
            waiting.tick(missing)
        pairs = [blob.split(b"\0", 1) for blob in got]
        if any(pair[0] != pairs[0][0] for pair in pairs):
            places = "; ".join(
                f"{self.unit} {w} {p[0].decode()}" for w, p in enumerate(pairs)
            )
            raise MismatchError(
                f"the workers are at different places: {places}. Run the same script "
                f"with the same arguments on every worker."
            )
        return [pair[1] for pair in pairs]

    def fail(self, text: str) -> None:
        """End the job on every worker with this message."""
        self.engine.fail(text)

    def error(self) -> WorkerError:
        """The job's first failure, as an exception."""
        return WorkerError(self.engine.failure)

    def _interruptible(self, call: Callable[..., Any], *args: Any) -> Any:
        from codedgrad.job import _engine

        try:
            return call(*args)
        except _engine.EngineFailure as failure:
            raise WorkerError(str(failure)) from None


class Waiting:
    """A wait with an end and, once a second, a message that says for whom."""

    def __init__(self, runtime: Runtime, what: str, quiet_s: float = 1.0) -> None:
        """`what` completes the sentence "waiting ... for worker 3"."""
        self.runtime = runtime
        self.what = what
        self.begin = time.monotonic()
        self.said = self.begin + quiet_s - 1.0

    def tick(self, workers: list[int]) -> None:
        """Call at least once a second while waiting for `workers`."""
        now = time.monotonic()
        waited = now - self.begin
        names, unit = self._names(workers), self.runtime.unit
        if workers and waited > _GONE_GRACE_S:
            gone = [w for w in self.runtime.engine.departed if w in workers]
            if gone:
                self._give_up(f"{unit}(s) {gone} have left the job; {self.what}")
        if waited > self.runtime.timeout_s:
            self._give_up(
                f"nothing came from {unit}(s) {names} for {waited:.0f} s {self.what}; "
                f"raise codedgrad.init(timeout_s=...) if that is normal"
            )
        if now - self.said >= 1.0:
            self.said = now
            log.warning(
                "%s %d waits %s for %s(s) %s, %.0f s so far",
                unit,
                self.runtime.rank,
                self.what,
                unit,
                names,
                waited,
            )

    def _names(self, workers: list[int]) -> str:
        """The workers and, of those who wait for us in turn, for what."""
        places = self.runtime.engine.announced()
        words = []
        for worker in workers:
            place = places.get(worker, b"").split(b"\0")[0].decode()
            words.append(f"{worker} (which waits {place})" if place else str(worker))
        return ", ".join(words) or "none in particular"

    def seconds(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.begin

    def _give_up(self, text: str) -> None:
        if self.runtime.engine.failed:  # meanwhile: who failed first says why,
            raise self.runtime.error()  # and those who left have left for that
        text = f"{self.runtime.unit} {self.runtime.rank} gave up: {text}"
        self.runtime.fail(text)
        raise WorkerError(text)


_runtime: Runtime | None = None
_crashed = False
_before_leaving: list[Callable[[], None]] = []


def current() -> Runtime:
    """The initialised runtime.

    Raises:
        EnvironmentSetupError: `codedgrad.init()` has not been called.
    """
    if _runtime is None:
        raise EnvironmentSetupError(
            "codedgrad is not initialised; call codedgrad.init() first"
        )
    return _runtime


def init(comm: Any = None, *, timeout_s: float = 600.0) -> None:
    """Join the job. Collective; a second call does nothing.

    Args:
        comm: mpi4py communicator of the workers; `MPI.COMM_WORLD` if None. It is
            duplicated, so other libraries (Horovod, mpi4py) may go on using it.
        timeout_s: seconds without news after which a wait for others is an error.

    Raises:
        EnvironmentSetupError: no MPI, an MPI without MPI_THREAD_MULTIPLE, another MPI
            than at build time, or a launcher that this MPI does not belong to.
    """
    global _runtime
    if _runtime is not None:
        return
    mpi = startup.load_mpi()
    engine_module = startup.load_engine(mpi)
    world = comm if comm is not None else mpi.COMM_WORLD
    startup.check_launcher(world.Get_size())
    own = world.Dup()
    node = own.Split_type(mpi.COMM_TYPE_SHARED)
    local_rank, local_size = node.Get_rank(), node.Get_size()
    first = node.bcast(own.Get_rank())
    nodes = sorted(set(own.allgather(first)))
    node.Free()
    engine_comm = own.Dup()
    _runtime = Runtime(
        comm=own,
        engine=engine_module.Engine.over_mpi(engine_comm.py2f()),
        rank=own.Get_rank(),
        size=own.Get_size(),
        local_rank=local_rank,
        local_size=local_size,
        timeout_s=timeout_s,
        cross_rank=nodes.index(first),
        cross_size=len(nodes),
    )
    one_machine = local_size == _runtime.size
    environment.export_torchrun_variables(
        {
            "RANK": _runtime.rank,
            "WORLD_SIZE": _runtime.size,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": local_size,
            "MASTER_ADDR": "127.0.0.1" if one_machine else None,
            "MASTER_PORT": 29500,
        }
    )
    _install_hooks()


def is_initialized() -> bool:
    """True between `init` and `shutdown`."""
    return _runtime is not None


def rank() -> int:
    """This worker's number, 0 to size() - 1."""
    return current().rank


def size() -> int:
    """Number of workers in the job."""
    return current().size


def local_rank() -> int:
    """This worker's number on its machine."""
    return current().local_rank


def local_size() -> int:
    """Number of workers on this machine."""
    return current().local_size


def cross_rank() -> int:
    """This machine's number, 0 to cross_size() - 1, in the order of first workers."""
    return current().cross_rank


def cross_size() -> int:
    """Number of machines in the job."""
    return current().cross_size


def barrier() -> None:
    """Wait until all workers are here. A failed worker ends the wait with its error."""
    current().gather(b"", "in a barrier")


def before_leaving(write: Callable[[], None]) -> None:
    """Call `write` when this worker leaves the job, in whatever way Python ends it."""
    _before_leaving.append(write)


def shutdown() -> None:
    """Leave the job. Collective; called at exit if the program does not.

    A worker's engine serves the others until all have come here.
    """
    _leave()


def _leave() -> bool:
    """As `shutdown`; True when every worker has left too."""
    global _runtime
    while _before_leaving:
        try:
            _before_leaving.pop()()
        except OSError as error:  # a full disk must not keep the others waiting
            log.error("not written: %s", error)  # noqa: TRY400
    if _runtime is None:
        return True
    runtime, _runtime = _runtime, None
    if _crashed or runtime.engine.failed:
        return _stop(runtime, _FAILURE_GRACE_S)
    try:
        runtime.gather(b"", "at the end of the job")
    except WorkerError:
        _stop(runtime, _FAILURE_GRACE_S)
        raise
    clean = _stop(runtime, 30.0)
    if clean:
        _leave_together(runtime)
    return clean


def _leave_together(runtime: Runtime) -> None:
    """Wait, not for ever, until every worker's engine has ended.

    Horovod, where it was initialised first, ends MPI on all workers as soon as one of
    them exits; an engine that still waits for a goodbye would then be aborted.
    """
    ended = runtime.comm.Ibarrier()
    until = time.monotonic() + _LEAVE_S
    while not ended.Test() and time.monotonic() < until:
        time.sleep(1e-4)


def _stop(runtime: Runtime, timeout_s: float) -> bool:
    clean = [part.stop(timeout_s) for part in reversed(runtime.parts.values())]
    clean.append(bool(runtime.engine.stop(timeout_s)))
    return all(clean)


def check_agreement(what: str, mine: list[tuple[str, str]]) -> None:
    """Compare named descriptions over all workers. Collective.

    Args:
        what: what is compared, for the message.
        mine: (name, value) pairs in order; all workers must have the same.

    Raises:
        MismatchError: on every worker, naming the workers and the first difference.
    """
    runtime = current()
    blob = "\x1e".join(f"{name}\x1f{value}" for name, value in mine).encode()
    everyone = runtime.gather(blob, f"to compare the {what}")
    problems = []
    for worker, theirs in enumerate(everyone):
        if theirs == everyone[0]:
            continue
        problems.append(f"worker {worker} {_difference(everyone[0], theirs)}")
    if problems:
        raise MismatchError(
            f"the workers disagree about the {what}: "
            + "; ".join(problems)
            + ". Run the same script with the same arguments on every worker."
        )


def _difference(reference: bytes, other: bytes) -> str:
    def pairs(blob: bytes) -> list[list[str]]:
        return [item.split("\x1f") for item in blob.decode().split("\x1e")]

    ours, theirs = pairs(reference), pairs(other)
    for position in range(max(len(ours), len(theirs))):
        a = ours[position] if position < len(ours) else ["nothing", "nothing"]
        b = theirs[position] if position < len(theirs) else ["nothing", "nothing"]
        if a[0] != b[0]:
            return f"has {b[0]} ({b[-1]}) where worker 0 has {a[0]} ({a[-1]})"
        if a != b:
            return f"has {a[0]} = {b[-1]}, worker 0 has {a[-1]}"
    return "differs"


def _install_hooks() -> None:
    atexit.register(_at_exit)
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        global _crashed
        if _runtime is not None and not issubclass(kind, SystemExit):
            _crashed = True
            # The others stop with this message; a no-op if the job failed before.
            _runtime.fail(f"worker {_runtime.rank} failed: {kind.__name__}: {error}")
        previous(kind, error, trace)

    sys.excepthook = hook


def _at_exit() -> None:
    runtime = _runtime
    try:
        clean = _leave()
    except WorkerError as error:
        log.error("%s", error)  # noqa: TRY400
        clean = False
    if runtime is not None and not clean:
        # MPI_Finalize would wait for workers that may never come to it.
        sys.stdout.flush()
        sys.stderr.flush()
        runtime.comm.Abort(1)
