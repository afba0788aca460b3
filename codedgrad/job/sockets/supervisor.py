"""Starts the workers of a job over sockets, and ends them together.

Each worker leads a process group of its own, so that what it has started ends with it.
The kernel ends the workers when the supervisor dies, whatever kills it. A shell, which
waits for its end, does the same with all that they have started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from codedgrad.errors import ConfigError
from codedgrad.job import environment
from codedgrad.job.environment import SocketJob
from codedgrad.job.sockets import proof
from codedgrad.job.sockets.desk import Desk
from codedgrad.job.sockets.marks import Marks
from codedgrad.job.sockets.reception import Reception

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

LOST = 80  # the exit status of a job that has ended well, and has lost workers
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)
_OWN_END_S = 5.0  # workers know that another one has failed, and end by themselves
_SIGTERM_S = 5.0  # from SIGTERM to SIGKILL
_LOOK_S = 0.02
_PR_SET_PDEATHSIG = 1
# It reads the numbers of process groups, until it reads "done" or the supervisor dies.
_KEEPER = (
    'while read -r group; do [ "$group" = done ] && exit; all="$all -$group"; done; '
    "kill -s KILL -- $all"
)


class Supervisor:
    """Some workers, from their start to the end of the last one.

    Args:
        command: what each worker runs.
        jobs: what each is told of the job.
        defaults: environment variables that they get where the user has not set them.
        restarts: how often a worker that the others outlive is started again.
    """

    def __init__(
        self,
        command: Sequence[str],
        jobs: list[SocketJob],
        defaults: dict[str, str],
        restarts: int = 0,
    ) -> None:
        self._workers: dict[int, subprocess.Popen[bytes]] = {}  # those that run
        self._status = 0
        self._marks = Marks(Path(jobs[0].folder))
        self._lost: dict[int, int] = {}  # the statuses of workers that the job outlives
        self._ends: list[tuple[float, signal.Signals]] = []  # what is sent when
        self._command, self._jobs, self._defaults = command, jobs, defaults
        self._restarts = restarts
        self._desk = Desk(Path(jobs[0].folder))
        self._process = dict.fromkeys((job.rank for job in jobs), 0)  # by worker
        self._keeper: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run all workers; return the status of the one that failed first.

        It is `LOST` where workers were lost, and all others have ended well.
        """
        before = {
            number: signal.signal(number, self._pass_on)
            for number in _PASSED_ON
            if signal.getsignal(number) is not signal.SIG_IGN  # by nohup, or `&`
        }
        keeper = self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        try:
            for job in self._jobs:
                self._start(job)
            self._wait()
        finally:
            self._send(signal.SIGKILL)
            _tell(keeper, "done")
            keeper.communicate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._status == 0 and (self._lost or self._marks.lost()):
            return LOST
        return self._status

    def _start(self, job: SocketJob) -> None:
        assert self._keeper is not None
        if self._restarts:
            self._desk.start(job.rank, self._process[job.rank])
        try:
            worker = _start(self._command, job, self._defaults)
        except OSError as error:
            raise ConfigError(
                f"{self._command[0]} cannot be started: {error}"
            ) from None
        self._workers[job.rank] = worker
        _tell(self._keeper, str(worker.pid))

    def _start_again(self, rank: int) -> None:
        """Start another process in the place of a worker, as often as that may be."""
        if self._process[rank] == self._restarts:
            return
        self._process[rank] += 1
        self._say(f"worker {rank} is started again")
        try:
            self._start(next(job for job in self._jobs if job.rank == rank))
        except ConfigError as error:
            self._say(f"{error}; it stays lost")

    def _is_in(self, rank: int) -> bool:
        """Return whether a worker is in the job: a new process may be yet to enter."""
        return self._desk.has_entered(rank, self._process[rank])

    def _wait(self) -> None:
        while self._workers:
            for rank, worker in list(self._workers.items()):
                status = worker.poll()
                if status is not None:
                    del self._workers[rank]
                    _signal_group(worker.pid, signal.SIGKILL)  # what it left behind
                    self._ended(rank, status)
            while self._ends and time.monotonic() > self._ends[0][0]:
                self._send(self._ends.pop(0)[1])
            time.sleep(_LOOK_S)

    def _ended(self, rank: int, status: int) -> None:
        if self._status != 0:
            return
        came_back = self._process[rank] > 0 and self._is_in(rank)
        if came_back:
            self._lost.pop(rank, None)
        text = f"with status {status}"
        if status < 0:
            text = f"by signal {-status} ({signal.Signals(-status).name})"
            status = 128 - status
        left = sorted(filter(self._is_in, self._workers))
        if not self._is_in(rank):
            self._say(f"worker {rank} ended {text}, before it had come back")
            if left and not self._ends:
                self._start_again(rank)
            return
        marked = self._marks.outlived(rank) and all(map(self._marks.outlives, left))
        if marked and left and not self._ends:
            self._lost[rank] = status
            self._say(f"worker {rank} ended {text}; worker(s) {left} go on")
            self._start_again(rank)
        elif status != 0:
            # Where somebody was lost before, the others may have failed because of it.
            self._status = next(iter(self._lost.values()), 0) or status
            others = f"; ending worker(s) {left}" if left else ""
            self._say(f"worker {rank} ended {text}{others}")
            self._end_all(_OWN_END_S)
        elif not left:  # those who wait to be let in wait in vain
            self._end_all(0.0)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"codedgrad run: {text}\n")

    def _end_all(self, grace_s: float) -> None:
        if not self._ends:
            term = time.monotonic() + grace_s
            self._ends = [(term, signal.SIGTERM), (term + _SIGTERM_S, signal.SIGKILL)]

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._send(signal.Signals(number))
        if number in _ENDING:
            self._end_all(_OWN_END_S)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            _signal_group(worker.pid, number)


class Machines(NamedTuple):
    """Several machines of one job; each runs its supervisor.

    Attributes:
        host: an address of the first machine, which all others reach.
        port: the port there at which the workers meet.
        number: of this machine, 0 for the first.
        total: how many machines there are.
    """

    host: str
    port: int
    number: int
    total: int


def run_on_machines(
    command: Sequence[str], workers: int, defaults: dict[str, str], machines: Machines
) -> int:
    """Run this machine's part of a job; return its exit status.

    Args:
        command: what each worker runs.
        workers: how many there are on all machines together.
        defaults: environment variables, where the user has not set them.
        machines: the machines.

    Raises:
        ConfigError: the numbers do not fit, there is no token, or nobody can listen.
    """
    each, rest = divmod(workers, machines.total)
    if rest or not 0 <= machines.number < machines.total:
        raise ConfigError(
            f"-n counts the workers of all machines and must be a multiple of their "
            f"number; got -n {workers} --machine {machines.number}/{machines.total}"
        )
    token = environment.given_token()
    if not token:
        raise ConfigError(f"--rendezvous needs a token; {proof.REMEDY}")
    place = machines.host, machines.port
    job = SocketJob(0, workers, token=token, rendezvous=place, one_machine=False)
    first = machines.number * each
    desk = Reception(*place, workers, token) if machines.number == 0 else None
    try:
        with _folder() as folder:
            job = replace(job, folder=folder)
            jobs = [replace(job, rank=first + local) for local in range(each)]
            return Supervisor(command, jobs, defaults).run()
    finally:
        if desk is not None:
            desk.close()


def run(
    command: Sequence[str], workers: int, defaults: dict[str, str], restarts: int = 0
) -> int:
    """Run a job on this machine; return its exit status.

    Args:
        command: what each worker runs.
        workers: how many there are.
        defaults: environment variables, where the user has not set them.
        restarts: how often a worker that the others outlive is started again.

    Raises:
        ConfigError: the command cannot be started.
    """
    with _folder() as folder:
        job = SocketJob(0, workers, token=proof.new_token(), folder=folder)
        jobs = [replace(job, rank=rank) for rank in range(workers)]
        return Supervisor(command, jobs, defaults, restarts).run()


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="codedgrad-", ignore_cleanup_errors=True)


def _start(
    command: Sequence[str], job: SocketJob, defaults: dict[str, str]
) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def before() -> None:
        os.setpgid(0, 0)
        # A process in the background that reads the terminal gets an error, not a stop.
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died before the kernel knew
            os._exit(1)

    return subprocess.Popen(
        command,
        env={**defaults, **environment.of_a_worker(job)},
        stdin=None if job.rank == 0 else subprocess.DEVNULL,
        preexec_fn=before,
    )


def _tell(keeper: subprocess.Popen[bytes], word: str) -> None:
    assert keeper.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # somebody has ended it
        keeper.stdin.write(f"{word}\n".encode())


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
