"""SIGSTOP of whole processes: the others go on, and no bit depends on it.

One job for each number of workers trains all its cases, since starting takes longer
than they do. That of 3 runs over sockets, the others by MPI. How long the longest step
is, on a machine that does nothing else, is for `benchmarks/bench_faults.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 100.0
STOP_S = 0.5  # after the least steps: 10 passes and more


class Stop(NamedTuple):
    """Who is stopped in which case, and how many steps the others make meanwhile.

    They are waited for, however slow the machine is now.
    """

    case: str
    workers: tuple[int, ...]
    least: int = 5
    most: int = 1000


JOBS = {
    3: [Stop("one", (1,))],
    4: [Stop("one", (3,)), Stop("scheduled", (2,))],
    5: [
        Stop("two", (1, 2)),
        Stop("whole", (1, 2, 3)),
        Stop("tiny", (0,)),
        Stop("buckets", (2, 4)),
        # Nobody goes on for ever: after the window, or without back-ups, or where bits
        # could depend on who decodes, the others wait.
        Stop("window", (3,), least=1, most=6),
        Stop("uncoded", (3,), least=-2, most=2),
        Stop("other_bits", (3,), least=-2, most=2),
    ],
}


def until(there: Any, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT_S
    while not there():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, "the job hangs"
        time.sleep(0.005)


def stop(folder: Path, wanted: Stop, n: int, job: Any) -> list[dict[str, Any]]:
    """Stop and wake the case's workers; returns what each worker says of the case."""

    def files(kind: str) -> list[Path]:
        return [folder / f"{wanted.case}.{kind}.{w}" for w in range(n)]

    begun = files("pid") + files("steps")
    until(lambda: all(f.exists() and f.stat().st_size for f in begun), job)
    held = [int(files("pid")[w].read_text()) for w in wanted.workers]
    live = [f for w, f in enumerate(files("steps")) if w not in wanted.workers]
    try:
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        # Two steps may be under way that need the stopped ones no more.
        before = [f.stat().st_size + 2 for f in live]

        def steps() -> list[int]:
            now = (f.stat().st_size for f in live)
            return [a - b for a, b in zip(now, before, strict=True)]

        until(lambda: min(steps()) >= wanted.least, job)
        if wanted.most < 1000:
            time.sleep(STOP_S)
            assert max(steps()) <= wanted.most, (wanted, steps())
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    until(lambda: all(f.exists() for f in files("end")), job)
    return [json.loads(f.read_text()) for f in files("end")]


@pytest.mark.parametrize("n", JOBS)
def test_the_others_go_on_with_the_same_bits(tmp_path: Path, n: int) -> None:
    cases = JOBS[n]
    launch = ["bash", "launch/mpirun.sh", "-n", str(n), sys.executable]
    if n == 3:
        own = [sys.executable, "-m", "codedgrad", "run", "--transport", "socket"]
        launch = [*own, "-n", str(n)]
    script = ["tests/failures/stopped.py", str(tmp_path), *(c.case for c in cases)]
    job = subprocess.Popen(
        ["timeout", "--kill-after=5", str(LIMIT_S), *launch, *script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for wanted in cases:
            found = stop(tmp_path, wanted, n, job)
            assert len({each["bits"] for each in found}) == 1, wanted
            if wanted.case != "other_bits":
                assert {each["calm"] for each in found} == {found[0]["bits"]}, wanted
        output = job.communicate(timeout=LIMIT_S)[0]
    finally:
        if job.poll() is None:
            job.kill()
            job.communicate()
    assert job.returncode == 0, output
