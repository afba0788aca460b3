"""The transports that must keep the contract, and how its cases run on all their ranks.

A new transport is one more function here, in THREADS or in PROCESSES.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transport.contract import CASES, Peer

from codedgrad.job import _engine, _mpi

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent
BARRIER_S = 30.0
START = "import bare, sys; from transport import transports as t; t.main(sys.argv[1])"


def local(ranks: int) -> Callable[[int], Any]:
    """Messages come late at random."""
    hub = _engine.LocalHub(ranks, 200, 1)
    return lambda rank: _engine.local_transport(hub, rank)


def short_tags(ranks: int) -> Callable[[int], Any]:
    """It offers the least that the contract allows."""
    hub = _engine.LocalHub(ranks, 200, 1, (1 << 15) - 1)
    return lambda rank: _engine.local_transport(hub, rank)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected by TCP, as between machines."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        caller = socket.create_connection(door.getsockname())
        return caller, door.accept()[0]


def sockets(ranks: int, pair: Callable[[], Any]) -> Callable[[int], Any]:
    """One connection for each pair of ranks."""
    fds = [[-1] * ranks for _ in range(ranks)]
    for a in range(ranks):
        for b in range(a):
            ends = pair()
            fds[a][b], fds[b][a] = (end.detach() for end in ends)
    return lambda rank: _engine.sockets_transport(rank, fds[rank])


def unix(ranks: int) -> Callable[[int], Any]:
    return sockets(ranks, socket.socketpair)


def tcp(ranks: int) -> Callable[[int], Any]:
    return sockets(ranks, tcp_pair)


def mpi(world: Any) -> Any:
    """On a communicator of its own, as in a job, with the tags of UCX."""
    messages = world.Dup()  # it lives until MPI ends
    capsule = _mpi.transport(messages.py2f(), (1 << 23) - 1)
    return _engine.foreign_transport(capsule)


# Transports whose ranks are threads of one process: from the number of ranks to what
# makes the transport of each.
THREADS: dict[str, Callable[[int], Callable[[int], Any]]] = {
    "local": local,
    "short_tags": short_tags,
    "unix": unix,
    "tcp": tcp,
}
# Transports whose ranks are processes, which mpirun starts: what makes a process's
# transport; it gets mpi4py's communicator.
PROCESSES: dict[str, Callable[[Any], Any]] = {"mpi": mpi}


def outcome(name: str, ranks: int) -> dict[str, str]:
    """Runs all cases; returns by case what went wrong."""
    if name in THREADS:
        return {c: in_threads(THREADS[name](ranks), ranks, c) for c in CASES}
    return in_processes(name, ranks)


def in_threads(start: Callable[[int], Any], ranks: int, case: str) -> str:
    barrier = threading.Barrier(ranks)

    def one(rank: int) -> str:
        try:
            CASES[case](Peer(start(rank), lambda: barrier.wait(BARRIER_S) and None))
        except Exception as error:  # noqa: BLE001
            barrier.abort()
            return f"rank {rank}: {type(error).__name__}: {error}\n"
        return ""

    with ThreadPoolExecutor(ranks) as pool:
        return "".join(pool.map(one, range(ranks)))


def in_processes(name: str, ranks: int) -> dict[str, str]:
    limit = ["timeout", "--kill-after=5", "100"]
    launch = ["bash", "launch/mpirun.sh", "-n", str(ranks)]
    done = subprocess.run(
        [*limit, *launch, sys.executable, "-c", START, name],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = set(done.stdout.split())
    problem = f"mpirun ended with {done.returncode}:\n{done.stderr}"
    return {case: "" if case in passed else problem for case in CASES}


def main(name: str) -> None:
    """One process of `in_processes`; the first prints which cases have passed."""
    import mpi4py

    mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    transport = PROCESSES[name](world)
    for case, run in CASES.items():
        try:
            run(Peer(transport, world.Barrier))
        except Exception as error:  # noqa: BLE001
            text = f"rank {world.rank}, {case}: {type(error).__name__}: {error}"
            print(text, file=sys.stderr, flush=True)
            world.Abort(1)
        world.Barrier()
        if world.rank == 0:
            print(case, flush=True)
