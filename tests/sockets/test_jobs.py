"""Jobs without MPI: the bits of one by MPI, strangers that call, a worker that dies."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codedgrad.job import environment
from codedgrad.job.sockets import calling, proof
from codedgrad.job.sockets.supervisor import LOST

ROOT = Path(__file__).parent.parent.parent
JOB = str(Path(__file__).parent / "job.py")
LIMIT_S = 100.0
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
RUN = [sys.executable, "-m", "codedgrad", "run"]


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["timeout", "--kill-after=5", str(LIMIT_S), *command],
        cwd=ROOT,
        env={
            **environment.without_launcher(),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(job: subprocess.Popen[str]) -> str:
    """Returns what a job that ends well has printed."""
    output = job.communicate()[0]
    assert job.returncode == 0, output
    return output


def bits(folder: Path, n: int) -> list[str]:
    return [(folder / f"bits.{rank}").read_text() for rank in range(n)]


def launchers(n: int) -> dict[str, list[str]]:
    found = {
        "mpi": ["bash", "launch/mpirun.sh", "-n", str(n), sys.executable],
        "socket": [*RUN, "-n", str(n), "--transport", "socket"],
    }
    return found if n == 2 else {**found, "torchrun": [*TORCHRUN, str(n)]}


@pytest.mark.parametrize("n", [2, 3])
def test_the_same_bits_by_every_launcher(tmp_path: Path, n: int) -> None:
    found = {}
    for name, command in launchers(n).items():
        folder = tmp_path / name
        folder.mkdir()
        job = [*command, JOB, str(folder)]
        if (name, n) == ("socket", 2):
            train_among_strangers([*job, "guarded"], folder / "door")
        else:
            end(start(job))
        found[name] = bits(folder, n)
    digest = found["mpi"][0].split()[0]
    assert found.pop("mpi") == [f"{digest} mpi"] * n
    assert found == dict.fromkeys(found, [f"{digest} no mpi"] * n)


def until(there: Any, job: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not there():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < limit, "the job hangs"
        time.sleep(0.005)


def train_among_strangers(command: list[str], door: Path) -> None:
    """Runs a job by TCP; others call at worker 0 meanwhile, and do not touch it."""
    job = start(command, CODEDGRAD_SOCKETS="tcp")
    until(lambda: door.exists() and door.stat().st_size, job)
    host, port = door.read_text().split()
    assert host == "127.0.0.1"

    def line(timeout_s: float = 5.0) -> socket.socket:
        return socket.create_connection((host, int(port)), timeout_s)

    with line() as slow:
        slow.sendall(b"c")
        for said in (b"GET / HTTP/1.1\r\n\r\n" * 20, os.urandom(1 << 20)):
            with line() as stranger, contextlib.suppress(ConnectionError):
                stranger.sendall(said)
                assert stranger.recv(1000) == b""
        with pytest.raises(calling.Refused, match="does not have this job's token"):
            calling.call(line, bytes(16), proof.greet("job 1", 1, 0), time.monotonic())
        assert job.poll() is None, job.communicate()[0]
        output = end(job)
    assert output.count("it did not greet as a worker does") == 1, output


@pytest.mark.parametrize("survives", [True, False])
def test_a_worker_that_dies_is_named_on_another_machine(
    tmp_path: Path, survives: bool
) -> None:
    """Two supervisors meet at an address, as those of two machines do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = "{}:{}".format(*free.getsockname())
    variables = {
        "CODEDGRAD_TOKEN": proof.new_token().hex(),
        "CODEDGRAD_ADDRESS": "127.0.0.1",
        "CODEDGRAD_SOCKETS": "tcp",
    }
    job = [*RUN, "-n", "2", "--rendezvous", place, "--machine"]
    words = [JOB, str(tmp_path), "dies" if survives else "dies other bits"]
    parts = [start([*job, f"{m}/2", *words], **variables) for m in range(2)]
    outputs = [part.communicate()[0] for part in parts]
    statuses = [LOST if survives else 1, 128 + 9]
    assert [part.returncode for part in parts] == statuses, outputs
    assert "worker 1 ended by signal 9 (SIGKILL)" in outputs[1]
    if survives:
        assert "worker(s) 1 are lost" in outputs[0], outputs
        assert (tmp_path / "bits.0").exists()
        return
    assert "worker 1 is gone: its process died" in outputs[0], outputs
    assert "without it: no training that outlives a worker has begun" in outputs[0]
