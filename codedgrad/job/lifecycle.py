"""How a process joins the job and how it leaves it.

A worker's engine serves the others until all have come to the end, so leaving is a
collective. There are three ways to leave:

    the script ends, or calls `shutdown`    wait for everybody, then leave together
    the script raises an exception, or      tell it to the others, who stop with it
    ends with `sys.exit(1)`
    another worker has failed               stop; where some worker has not stopped,
                                            MPI_Finalize could wait for ever, so the
                                            process aborts at its exit

`before_leaving` registers what has to be written in each of these cases.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from codedgrad.errors import (
    CodedGradError,
    ConfigError,
    EnvironmentSetupError,
    MismatchError,
    WorkerError,
)
from codedgrad.job import environment, exported, rejoin, runtime, startup
from codedgrad.job.exit_status import ScriptEnd
from codedgrad.job.place import find_place
from codedgrad.job.progress import AT_THE_END, decode_steps, uneven
from codedgrad.job.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from codedgrad.job.channel import Channel

log = logging.getLogger("codedgrad")

_FAILURE_GRACE_S = 3.0  # until all workers have heard of a failure and said so
_STOP_S = 30.0  # until an engine has sent all that it still has to send
_LEAVE_S = 5.0  # until the engines of all others have ended

_crashed = False
_script: ScriptEnd | None = None  # how the script ends; None before `init`
_deserted: Runtime | None = None  # was left while others had not left it
_before_leaving: list[Callable[[], None]] = []


def init(
    comm: Any = None,
    *,
    timeout_s: float = 600.0,
    export_env: bool = False,
    min_workers: int = 1,
) -> None:
    """Join the job. Collective; a second call does nothing.

    Args:
        comm: mpi4py communicator of the workers; `MPI.COMM_WORLD` if None. It is
            duplicated, so other libraries (Horovod, mpi4py) may go on using it.
        timeout_s: seconds without news after which a wait for others is an error.
        export_env: True to set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
            MASTER_ADDR and MASTER_PORT until `shutdown`, for libraries that start by
            them, such as `torch.distributed`. Some (Accelerate, transformers) then
            train with DistributedDataParallel, so nothing is set unless you ask.
        min_workers: where workers may be lost (see docs/faults.md), the job ends when
            fewer than these are left.

    Raises:
        ConfigError: there are fewer than `min_workers`, or it is less than 1.
        EnvironmentSetupError: by MPI, there is none, it runs below MPI_THREAD_MULTIPLE,
            the engine was built for another one, or the launcher belongs to another
            one; over sockets, the workers cannot reach one another.
    """
    if is_initialized():
        return
    if environment.parent_has_joined():
        raise EnvironmentSetupError(
            "this process was started by a worker of the job (a loader process with "
            "multiprocessing_context='spawn', say) and runs the script once more. Put "
            "all but definitions under `if __name__ == '__main__':`"
        )
    world = startup.open_world(comm)
    if rejoin.process_of(world):
        _join(_outside(world, timeout_s, min_workers, export_env=export_env))
        return
    channel = world.duplicate()
    place = find_place(channel)
    if not 1 <= min_workers <= place.size:
        raise ConfigError(
            f"min_workers must be 1 to {place.size}, the number of workers, got "
            f"{min_workers}"
        )
    _join(
        Runtime(
            place=place,
            channel=channel,
            engine=channel.duplicate().start_engine(environment.max_tag()),
            timeout_s=timeout_s,
            min_workers=min_workers,
        )
    )
    if export_env:
        exported.export(runtime.current())


def _outside(
    world: Channel, timeout_s: float, min_workers: int, *, export_env: bool
) -> Runtime:
    """Return the runtime of a process in the place of one that has died."""
    if export_env:
        raise ConfigError(
            "a worker that comes back cannot set the others' variables; leave out "
            "export_env=True, or `--restarts` of `codedgrad run`"
        )
    return rejoin.outside(world, timeout_s, min_workers)


def _join(joined: Runtime) -> None:
    global _script
    runtime.set_current(joined)
    environment.keep_others_alone()
    environment.export({})
    if _script is None:  # the first `init` of this process
        _script = ScriptEnd()
        _tell_others_of_exceptions()
        atexit.register(_at_exit)


def is_initialized() -> bool:
    """Return True between `init` and `shutdown`."""
    return runtime.find_current() is not None


def before_leaving(write: Callable[[], None]) -> None:
    """Call `write` when this worker leaves the job, in whatever way Python ends it."""
    _before_leaving.append(write)


def shutdown() -> None:
    """Leave the job. Collective; called at exit if the program does not.

    A worker's engine serves the others until all have called this.

    Raises:
        WorkerError: a worker failed, or did not come within `timeout_s`.
        MismatchError: the workers have made different numbers of steps, or some of them
            wait for something else.
    """
    _leave()


def _leave() -> None:
    """Leave as `shutdown` does, and note it if some worker has not left, too."""
    global _deserted
    _write_records()
    leaver = runtime.find_current()
    if leaver is None:
        return
    runtime.set_current(None)
    environment.withdraw()
    if leaver.outside:
        log.warning("worker %d ends without having entered the job", leaver.rank)
        leaver.engine.stop(0.0)
        return
    clean = well = False
    problem = None
    try:
        if _crashed or leaver.engine.failed:
            clean = _stop(leaver, _FAILURE_GRACE_S)
            return
        try:
            blobs = leaver.gather(leaver.progress.encode(), AT_THE_END)
            problem = uneven(leaver.unit, [decode_steps(blob) for blob in blobs])
        except BaseException as error:
            leaver.fail(f"worker {leaver.rank} could not leave the job: {error}")
            clean = _stop(leaver, _FAILURE_GRACE_S)
            raise
        clean = _stop(leaver, _STOP_S)
        well = clean and problem is None
        if clean and not leaver.losses.look(leaver, AT_THE_END):
            _leave_together(leaver)
    finally:
        leaver.channel.unmark_survivor(leaver.losses.ranks, well=well)
        if not clean:
            _deserted = leaver
    if problem is not None:
        raise MismatchError(
            f"{problem}. Run the same number of steps on every worker: with samplers "
            f"of the same length, and without leaving the loop on some of them only"
        )


def _write_records() -> None:
    while _before_leaving:
        try:
            _before_leaving.pop()()
        except OSError as error:  # a full disk must not keep the others waiting
            log.error("not written: %s", error)  # noqa: TRY400


def _stop(leaver: Runtime, timeout_s: float) -> bool:
    """Stop what the job has set up, last first; True if nothing is under way."""
    clean = [part.stop(timeout_s) for part in reversed(leaver.parts.values())]
    clean.append(bool(leaver.engine.stop(timeout_s)))
    return all(clean)


def _leave_together(leaver: Runtime) -> None:
    """Wait, not for ever, until every worker's engine has ended.

    Horovod, where it was initialised first, ends MPI on all workers as soon as one of
    them exits; an engine that still waits for a goodbye would then be aborted.
    """
    until = time.monotonic() + _LEAVE_S
    with contextlib.suppress(WorkerError):  # one has died after its goodbye
        ended = leaver.channel.start_barrier()
        while not ended.test() and time.monotonic() < until:
            time.sleep(1e-4)


def _tell_others_of_exceptions() -> None:
    """Let an exception that ends this script end the job on all workers."""
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        global _crashed
        joined = runtime.find_current()
        if joined is not None and not issubclass(kind, SystemExit):
            _crashed = True
            # Does nothing if the job has failed before; then the first reason counts.
            joined.fail(f"worker {joined.rank} failed: {kind.__name__}: {error}")
        previous(kind, error, trace)

    sys.excepthook = hook


def _at_exit() -> None:
    global _crashed, _deserted
    leaver = runtime.find_current()
    failure = None if _script is None else _script.failure()
    if leaver is not None and failure is not None and not _crashed:
        _crashed = True
        leaver.fail(f"worker {leaver.rank} failed: {failure}")
    try:
        _leave()
    except CodedGradError as error:
        log.error("%s", error)  # noqa: TRY400
        _deserted = leaver  # an exit status of 0 would say that all is well
    finally:
        if _deserted is not None:
            # MPI_Finalize would wait for workers that may never come to it.
            sys.stdout.flush()
            sys.stderr.flush()
            _deserted.channel.abort(1)
