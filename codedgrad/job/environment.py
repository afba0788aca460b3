"""Environment variables. They are read in this file and nowhere else.

No variable beats an argument in silence: CODEDGRAD_FAULTS is used where no `faults`
argument was given, CODEDGRAD_GPU_*, CODEDGRAD_TAG_BITS and CODEDGRAD_ADDRESS have no
argument, nor have CODEDGRAD_TOKEN and CODEDGRAD_SOCKETS; CODEDGRAD_RANK, _SIZE, _FOLDER
and _RENDEZVOUS are set by `codedgrad run`, CODEDGRAD_JOINED by `init`, and the others
belong to launchers and to torch.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Launcher variables that say how many workers were started, first match wins.
_WORLD_SIZES = (
    ("HOROVOD_SIZE", "horovodrun --gloo"),
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("MV2_COMM_WORLD_SIZE", "MVAPICH's mpirun"),
    ("PMI_SIZE", "MPICH's mpirun"),
)
# Launchers that start processes without MPI, by a variable that only they set.
_WITHOUT_MPI = (
    ("TORCHELASTIC_RUN_ID", "torchrun (or accelerate launch)"),
    ("GROUP_RANK", "torchrun"),
    ("RANK", "a launcher that sets RANK and WORLD_SIZE (torchrun, deepspeed, ...)"),
    ("WORLD_SIZE", "a launcher that sets WORLD_SIZE"),
)
# By these a process knows that a launcher has started it; the second line is what a
# user may have set by hand.
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "HYDRA_", "PRTE_", "HOROVOD_")
_SUPERVISORS = tuple(
    f"CODEDGRAD_{name}" for name in ("RANK", "SIZE", "FOLDER", "RENDEZVOUS")
)
_USERS = ("OMPI_ALLOW", "PRTE_ALLOW", "OMPI_MCA")
# What the standard of MPI promises at least, and what an int holds.
_LEAST_TAG_BITS, _MOST_TAG_BITS = 15, 31
_JOINED = "CODEDGRAD_JOINED"  # the process that has joined the job
_TOKEN_BYTES = 16
_before_export: dict[str, str | None] = {}


def faults_text() -> str:
    """Return CODEDGRAD_FAULTS, the slowness to inject; "" if it is unset.

    `codedgrad.faults` describes its grammar.
    """
    return os.environ.get("CODEDGRAD_FAULTS", "")


def gpu_direct() -> bool:
    """Return whether MPI may be given a GPU's memory, if it takes that.

    CODEDGRAD_GPU_DIRECT=0 forbids it.

    Raises:
        ConfigError: the variable is not 0, 1 or unset.
    """
    return _switch("CODEDGRAD_GPU_DIRECT") != "0"


def gpu_decode() -> str:
    """Return CODEDGRAD_GPU_DECODE: where sums of rows on a GPU are formed.

    Returns:
        "0" on CPUs, "1" on GPUs, "" where it is faster.

    Raises:
        ConfigError: the variable is not 0, 1 or unset.
    """
    return _switch("CODEDGRAD_GPU_DECODE")


def max_tag() -> int:
    """Return the largest MPI tag that the engine may use, by CODEDGRAD_TAG_BITS.

    Unset: whatever MPI offers. It is for tests, and for an MPI that offers more bits
    than its network carries.

    Raises:
        ConfigError: the variable is no number from 15 to 31.
    """
    value = os.environ.get("CODEDGRAD_TAG_BITS", "") or "31"
    if value.isdigit() and _LEAST_TAG_BITS <= int(value) <= _MOST_TAG_BITS:
        return (1 << int(value)) - 1
    raise ConfigError(
        f"CODEDGRAD_TAG_BITS must be {_LEAST_TAG_BITS} to {_MOST_TAG_BITS} or unset, "
        f"got {value!r}"
    )


def address() -> str:
    """Return CODEDGRAD_ADDRESS, at which other machines reach this one; "" if unset.

    Local groups of a job on several machines need it where the address that the machine
    finds by itself is none that the others can reach. It is an address or a host name.
    """
    return os.environ.get("CODEDGRAD_ADDRESS", "")


@dataclass(frozen=True)
class SocketJob:
    """What a launcher says of a job over sockets.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        token: the job's secret; b"" if worker 0 is to draw one.
        folder: the supervisor's, where workers of one machine meet; "" if none.
        store: host, port and prefix of torchrun's store, if they meet there.
        rendezvous: host and port of the first machine's supervisor, if they meet there.
        one_machine: whether all run on one machine.
        by: "unix", "tcp", or "" for what fits.
    """

    rank: int
    size: int
    token: bytes = b""
    folder: str = ""
    store: tuple[str, int, str] | None = None
    rendezvous: tuple[str, int] | None = None
    one_machine: bool = True
    by: str = ""


def socket_job() -> SocketJob | None:
    """Return the job over sockets to which this process belongs; None if there is none.

    A launcher of MPI processes comes first, unless a torchrun that it has started has
    started this process.

    Raises:
        ConfigError: a variable of codedgrad's own is wrong.
    """
    by_mpi = any(os.environ.get(name, "").isdigit() for name, _ in _WORLD_SIZES)
    if by_mpi and not torchrun_inside_mpirun():
        return None
    if "CODEDGRAD_RANK" in os.environ:
        return _of_the_supervisor()
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT")
    numbers = [os.environ.get(name, "") for name in names]
    if "TORCHELASTIC_RUN_ID" not in os.environ or not all(
        number.isdigit() for number in numbers
    ):
        return None
    rank, size, port = map(int, numbers)
    run = os.environ["TORCHELASTIC_RUN_ID"]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return SocketJob(
        rank=rank,
        size=size,
        token=given_token(),
        store=(os.environ.get("MASTER_ADDR", ""), port, f"codedgrad/{run}/{attempt}"),
        one_machine=os.environ.get("LOCAL_WORLD_SIZE", "") == str(size),
        by=_sockets(),
    )


def _of_the_supervisor() -> SocketJob:
    numbers = []
    for name in ("CODEDGRAD_RANK", "CODEDGRAD_SIZE"):
        value = os.environ.get(name, "")
        if not value.isdigit():
            raise ConfigError(f"{name} must be a number, got {value!r}")
        numbers.append(int(value))
    rank, size = numbers
    folder = os.environ.get("CODEDGRAD_FOLDER", "")
    place = os.environ.get("CODEDGRAD_RENDEZVOUS", "")
    if not folder and not place and size > 1:
        raise ConfigError(
            "CODEDGRAD_RANK is set, and neither CODEDGRAD_FOLDER nor "
            "CODEDGRAD_RENDEZVOUS is"
        )
    return SocketJob(
        rank=rank,
        size=size,
        token=given_token(),
        folder=folder,
        rendezvous=host_and_port(place) if place else None,
        one_machine=not place,
        by=_sockets(),
    )


def host_and_port(place: str) -> tuple[str, int]:
    """Return the two parts of "HOST:PORT".

    Raises:
        ConfigError: they are not that.
    """
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"a meeting place is HOST:PORT, got {place!r}")
    return host.strip("[]"), int(port)


def given_token() -> bytes:
    """Return CODEDGRAD_TOKEN, the job's secret; b"" if it is unset.

    Raises:
        ConfigError: it is none.
    """
    value = os.environ.get("CODEDGRAD_TOKEN", "")
    try:
        token = bytes.fromhex(value)
    except ValueError:
        token = b"?"
    if len(token) not in (0, _TOKEN_BYTES):
        raise ConfigError(
            f"CODEDGRAD_TOKEN must be {2 * _TOKEN_BYTES} hexadecimal digits or unset, "
            f"and has {len(value)} characters"
        )
    return token


def _sockets() -> str:
    value = os.environ.get("CODEDGRAD_SOCKETS", "")
    if value not in ("", "unix", "tcp"):
        raise ConfigError(
            f"CODEDGRAD_SOCKETS must be unix, tcp or unset, got {value!r}"
        )
    return value


def of_a_worker(job: SocketJob) -> dict[str, str]:
    """Return the environment of a worker that this process starts."""
    return {
        **without_launcher(),
        "CODEDGRAD_RANK": str(job.rank),
        "CODEDGRAD_SIZE": str(job.size),
        "CODEDGRAD_FOLDER": job.folder,
        "CODEDGRAD_RENDEZVOUS": "{}:{}".format(*job.rendezvous or ("", "")).strip(":"),
        "CODEDGRAD_TOKEN": job.token.hex(),
    }


def lightning_seed() -> int:
    """Return PL_GLOBAL_SEED, which Lightning's `seed_everything` sets; 0 if unset."""
    value = os.environ.get("PL_GLOBAL_SEED", "")
    return int(value) if value.isdigit() else 0


@contextmanager
def gloo_interface(name: str | None) -> Iterator[None]:
    """Let torch's Gloo use this network interface, unless the user has named one."""
    variable = "GLOO_SOCKET_IFNAME"
    if name is None or variable in os.environ:
        yield
        return
    os.environ[variable] = name
    try:
        yield
    finally:
        os.environ.pop(variable, None)


def _switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{name} must be 0, 1 or unset, got {value!r}")
    return value


def launcher_world() -> tuple[str, int] | None:
    """Return (launcher, workers it started), or None if there is no sign of one.

    A launcher of MPI processes comes first: under mpirun, the variables of torchrun
    belong to something around the job, or are set for other libraries.
    """
    names = list(_WORLD_SIZES)
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        names.append(("SLURM_NTASKS", "srun"))
    for variable, name in names:
        value = os.environ.get(variable, "")
        if value.isdigit():
            return name, int(value)
    value = os.environ.get("WORLD_SIZE", "")
    for variable, name in _WITHOUT_MPI:
        if value.isdigit() and variable in os.environ:
            return name, int(value)
    return None


def torchrun_inside_mpirun(pid: int | None = None) -> bool:
    """Return whether a worker of mpirun is a torchrun that has started this process.

    All that it starts have inherited the variables of that one worker, so MPI would
    take them for the same worker, and hang. In the other order, mpirun inside torchrun,
    the variables are the same. The environments of the ancestors tell: the nearest one
    without torchrun's variable is torchrun itself.

    Args:
        pid: the process whose ancestors are looked at; this one's parent by default.
    """
    mark = b"TORCHELASTIC_RUN_ID="
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    pid = os.getppid() if pid is None else pid
    try:
        while pid > 1:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if not any(v.startswith(mark) for v in variables):
                sizes = tuple(f"{name}=".encode() for name, _ in _WORLD_SIZES)
                return any(v.startswith(sizes) for v in variables)
            status = Path(f"/proc/{pid}/stat").read_text()
            pid = int(status.rsplit(")", 1)[1].split()[1])
    except (OSError, ValueError, IndexError):
        pass  # no /proc here, or no leave to look
    return False


def slurm_tasks() -> int:
    """Return the number of tasks of the Slurm job around this process, or 0."""
    value = os.environ.get("SLURM_NTASKS", "")
    return int(value) if value.isdigit() and "SLURM_JOB_ID" in os.environ else 0


def without_launcher() -> dict[str, str]:
    """Return the environment of a process that no launcher has started.

    With a launcher's variables, a process that this one starts would look like one of
    the launcher's workers.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith(_LAUNCHERS) or name.startswith(_USERS))
        and name not in _SUPERVISORS
    }


def with_defaults(settings: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with settings added where they are not set."""
    return {**settings, **os.environ}


def to_other_machines() -> list[str]:
    """Return the variables that workers on other machines need, as far as they are set.

    mpirun passes variables on only if it is told to.
    """
    names = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS")
    return [n for n in (*names, "CODEDGRAD_FAULTS") if os.environ.get(n)]


def keep_others_alone() -> None:
    """Keep libraries in this process from making DDP of an MPI job.

    Accelerate, and with it transformers' Trainer, takes a size above 1 in Open MPI's
    variables for a wish to train with DistributedDataParallel, on CPUs. Gradients would
    be averaged twice then, and all workers would wait for the slowest. It looks at
    MPICH's variable first, which Open MPI does not use. For the same reason RANK,
    LOCAL_RANK and WORLD_SIZE are set only where the user asks for it.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        os.environ.setdefault("PMI_SIZE", "1")


def master() -> tuple[str, str] | None:
    """Return MASTER_ADDR and MASTER_PORT; None unless both are set."""
    host, port = (os.environ.get(f"MASTER_{name}", "") for name in ("ADDR", "PORT"))
    return (host, port) if host and port else None


def parent_has_joined() -> bool:
    """Return whether multiprocessing started this process, in one that has joined.

    One that is not forked runs the script before it knows its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return os.environ.get(_JOINED, str(os.getpid())) != str(os.getpid())
    parent = multiprocessing.parent_process()
    return parent is not None and os.environ.get(_JOINED) == str(parent.pid)


def export(values: dict[str, str]) -> None:
    """Set variables until `withdraw`, and that by which `parent_has_joined` knows."""
    for name, value in {**values, _JOINED: str(os.getpid())}.items():
        _before_export.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def withdraw() -> None:
    """Give the variables of `export` the values that they had before."""
    for name, value in _before_export.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before_export.clear()
