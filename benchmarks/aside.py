"""Horovod's steps in a job of their own, stopped while other methods are measured.

Horovod's thread looks for work every millisecond, on every worker and also between its
own blocks. In the processes of the other methods it would slow all of them. Worker 0 of
bench_step therefore starts a second `mpirun` on the same machine. This second job is
stopped (SIGSTOP) except during its own blocks; during these, all workers of bench_step
are stopped except worker 0, which waits.

Worker 0 of the second job reads commands from its standard input, one a line, and
answers each with a line that begins with `ASIDE`:

    straggle FAULTS     inject this slowness from now on
    block STEPS         seconds per step of a block
    end                 leave
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness import COMM, say

ROOT = Path(__file__).resolve().parent.parent
# An MPI knows its processes by the variables OURS; what the user has set must STAY.
OURS = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "HYDI_", "MPIEXEC_", "MPI_LOCAL")
STAY = ("_ALLOW_RUN_AS_ROOT", "_ALLOW_RUN_AS_ROOT_CONFIRM")
START_S, BLOCK_S = 120.0, 600.0


class Aside:
    """A method of bench_step that computes in the second job.

    All its calls are collective.
    """

    def __init__(self, task: str, batch_size: int, passes: int = 1) -> None:
        """Start the second job, with as many workers as this one.

        Args:
            task: one of jobs.TASKS.
            batch_size: samples of a worker.
            passes: passes of a step.

        Raises:
            ImportError: there is no Horovod.
            RuntimeError: the job does not start.
        """
        from importlib.util import find_spec

        if find_spec("horovod") is None:
            raise ImportError("no module named 'horovod'")
        self._pids: list[int] = []
        self._others = (COMM.gather(os.getpid()) or [])[1:]
        if COMM.rank == 0:
            self._start(task, batch_size, passes)
        self._everybody(lambda: self._hear(START_S))
        if COMM.rank == 0:
            self._pids = json.loads(self._heard)
            # It ends the stopped processes if this one ends without doing so.
            self._warden = subprocess.Popen(
                ["sh", "-c", f"cat >/dev/null; kill -KILL {self._everyone()}"],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._signal(signal.SIGSTOP, self._pids)

    def straggle(self, faults: str) -> None:
        """Inject this slowness from now on."""
        self._ask(f"straggle {faults}")

    def block(self, steps: int) -> float:
        """Return the seconds per step of a block."""
        return float(self._ask(f"block {steps}"))

    def close(self) -> None:
        """End the second job."""
        if COMM.rank == 0:
            self._signal(signal.SIGCONT, self._pids)
            self._job.stdin.write("end\n")
            self._job.stdin.close()
            try:
                self._job.wait(10)
            except subprocess.TimeoutExpired:
                say("the job beside does not end by itself: killed")
            else:
                self._warden.kill()
            self._warden.stdin.close()
            self._warden.wait()

    # ---- worker 0 ----

    def _start(self, task: str, batch_size: int, passes: int) -> None:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(OURS) or name.endswith(STAY)
        }
        script = ["benchmarks/aside.py", task, str(batch_size), str(passes)]
        self._job: Any = subprocess.Popen(
            ["bash", "launch/mpirun.sh", "-n", str(COMM.size), sys.executable, *script],
            cwd=ROOT,
            env=clean | {"PYTHON": sys.executable},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _hear(self, limit_s: float) -> str:
        """Return the next answer; whatever else the job prints is passed on."""
        timer = threading.Timer(limit_s, self._job.kill)
        timer.start()
        try:
            for line in self._job.stdout:
                if line.startswith("ASIDE "):
                    self._heard: str = line.removeprefix("ASIDE ").strip()
                    return self._heard
                print(line, end="", flush=True)
        finally:
            timer.cancel()
        raise RuntimeError(f"the job beside, with Horovod, gave nothing in {limit_s} s")

    def _everyone(self) -> str:
        return " ".join(map(str, [self._job.pid, *self._pids]))

    def _signal(self, which: signal.Signals, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, which)

    # ---- everybody ----

    def _ask(self, command: str) -> str:
        def ask() -> str:
            self._signal(signal.SIGSTOP, self._others)
            self._signal(signal.SIGCONT, self._pids)
            try:
                self._job.stdin.write(command + "\n")
                self._job.stdin.flush()
                return self._hear(BLOCK_S)
            finally:
                self._signal(signal.SIGSTOP, self._pids)
                self._signal(signal.SIGCONT, self._others)

        return self._everybody(ask)

    def _everybody(self, call: Any) -> str:
        """Return what `call` returns on worker 0; the others sleep meanwhile."""
        answer = call() if COMM.rank == 0 else None
        request = COMM.Ibarrier()
        while not request.Test():
            time.sleep(1e-3)
        return str(COMM.bcast(answer))


def main() -> None:
    """Be a worker of the second job."""
    import torch
    from jobs import Job
    from step_methods import Horovod, block

    task, batch_size, passes = sys.argv[1:]
    torch.set_num_threads(1)
    method = Horovod(Job(task, int(batch_size) * COMM.size), int(passes))
    method.step()
    pids = COMM.gather(os.getpid())
    say(f"ASIDE {json.dumps(pids)}")
    while True:
        line = COMM.bcast(sys.stdin.readline() if COMM.rank == 0 else None)
        command, _, value = line.strip().partition(" ")
        if command in ("", "end"):
            break
        if command == "straggle":
            method.straggle(value)
            say("ASIDE ok")
        else:
            say(f"ASIDE {block(method, int(value))}")
    method.hvd.shutdown()


if __name__ == "__main__":
    main()
