"""Local groups on two machines, which are made up: the processes believe in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codedgrad.job import addresses

ROOT = Path(__file__).parent.parent.parent
JOB = """
import socket, sys, torch, codedgrad
from codedgrad.job import runtime
from codedgrad.job.place import Place

codedgrad.init(timeout_s=30)
job = runtime.current()
machine, local = divmod(job.rank, 2)
job.place = Place(job.rank, 4, local, 2, machine, 2)
socket.gethostname = lambda: "node"
socket.gethostbyname = lambda name: "127.0.1.1" if name == "node" else name
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
coded = codedgrad.CodedGradient(model, local_group="node")
for shards in coded.steps(codedgrad.ShardSampler((torch.ones(32, 2),), 32)):
    coded.backward(lambda x: model(x).mean(), shards)
print("gradient", model.weight.grad.tolist(), flush=True)
"""


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "--kill-after=5", "60", "bash", "launch/mpirun.sh", "-n", "4",
         sys.executable, "-c", JOB],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.skipif(not addresses.candidates(), reason="there is only the loopback")
def test_groups_connect_though_the_name_is_the_loopback() -> None:
    done = start()
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("gradient [[1.0, 1.0]]") == 4, done.stdout


def test_an_address_that_cannot_be_reached_is_an_error_on_all() -> None:
    done = start(CODEDGRAD_ADDRESS="no-such-host.invalid")
    assert done.returncode not in (0, 124, 137), done.stdout
    words = "no address of the first worker answers"
    assert done.stdout.count("CODEDGRAD_ADDRESS=...") >= 4, done.stdout
    assert words in done.stdout
    assert "no-such-host.invalid" in done.stdout
