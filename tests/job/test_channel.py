"""The collectives in one process; tests/parallel/test_channel.py has any number.

MPI is initialised in a process of its own: it leaves variables behind by which the jobs
that other tests start would take this process for their launcher.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codedgrad.job import environment
from codedgrad.job.channel import Library, MpiRequest

ALONE = """
import gc
import numpy as np
from codedgrad.job import channel

mpi = channel.load()
assert mpi.takes_any_thread, mpi
assert mpi.vendor in mpi.text.replace("\\n", " ") and mpi.version[0].isdigit(), mpi
from mpi4py import MPI

for comm in (None, MPI.COMM_SELF):
    world = channel.MpiChannel.of_job(comm)
    own = world.duplicate()
    assert own.fortran_handle != world.fortran_handle
    machine, some = own.split_by_machine(), own.of_ranks([0])
    for each in (own, machine, some):
        assert (each.rank, each.size) == (0, 1)
        assert each.allgather(7) == [7]
        every = np.zeros(3, np.int64)
        request = each.start_allgather(np.arange(3), every)
        gc.collect()  # nobody but the request has the memory of what is sent
        while not request.test():
            pass
        assert request.test()  # and goes on saying so
        assert every.tolist() == [0, 1, 2]
        data = np.array([5])
        for request in (each.start_broadcast(data, root=0), each.start_barrier()):
            while not request.test():
                pass
        assert data[0] == 5
        each.free()
print("done", flush=True)
MPI.COMM_SELF.Dup()
channel.MpiChannel.of_job().abort(3)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import bare\n{script}"],
        env=environment.without_launcher() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_one_process_alone() -> None:
    done = run(ALONE)
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 3


def test_an_mpi_that_is_initialised_keeps_its_thread_level() -> None:
    done = run(
        "import mpi4py; mpi4py.rc.thread_level = 'serialized'\n"
        "from mpi4py import MPI\n"
        "from codedgrad.job import channel\n"
        "print(channel.load().takes_any_thread)"
    )
    assert done.stdout == "False\n", done.stderr


def test_a_request_keeps_its_memory() -> None:
    answers = iter([False, True])
    fake: Any = SimpleNamespace(Test=lambda: next(answers))
    data = np.zeros(3)
    memory = weakref.ref(data)
    request = MpiRequest(fake, data)
    del data
    gc.collect()
    assert memory() is not None
    assert [request.test(), request.test()] == [False, True]
    del request
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize(("level", "enough"), [(2, False), (3, True), (4, True)])
def test_the_thread_level_that_the_engine_needs(level: int, enough: bool) -> None:
    mpi = Library("", "MPICH", "4.2", "4.1", thread_level=level, thread_multiple=3)
    assert mpi.takes_any_thread == enough
