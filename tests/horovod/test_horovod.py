"""codedgrad beside Horovod, under horovodrun and under mpirun.

`bash launch/build_horovod.sh` installs Horovod.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(command: list[str], seconds: float = 100.0) -> tuple[int, str]:
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["timeout", "--kill-after=5", str(seconds), *command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [1, 3])
def test_horovod_and_codedgrad_in_one_process(workers: int) -> None:
    launcher = ["bash", "launch/horovodrun.sh", "-np", str(workers)]
    status, output = run([*launcher, sys.executable, "tests/horovod/job.py"])
    assert status == 0, output
    for worker in range(workers):
        assert f"worker {worker} of {workers} is done" in output


def test_the_same_script_under_mpirun() -> None:
    launcher = ["bash", "launch/mpirun.sh", "-n", "2"]
    status, output = run([*launcher, sys.executable, "tests/horovod/job.py"])
    assert status == 0, output
    assert "worker 1 of 2 is done" in output


def test_gloo_is_refused_with_the_remedy() -> None:
    begin = time.monotonic()
    # What `horovodrun --gloo -np 2` sets for its first process.
    gloo = [
        *("HOROVOD_RANK=0", "HOROVOD_SIZE=2"),
        *("HOROVOD_LOCAL_RANK=0", "HOROVOD_LOCAL_SIZE=2"),
        *("HOROVOD_CROSS_RANK=0", "HOROVOD_CROSS_SIZE=1"),
        *("HOROVOD_CONTROLLER=gloo", "HOROVOD_CPU_OPERATIONS=gloo"),
        *("HOROVOD_GLOO_RENDEZVOUS_ADDR=127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT=9"),
    ]
    script = "import codedgrad; codedgrad.init()"
    status, output = run(["env", *gloo, sys.executable, "-c", script])
    assert status != 0
    assert time.monotonic() - begin < 60
    assert "started 2 workers, but MPI sees 1" in output
    assert "horovodrun --mpi" in output
