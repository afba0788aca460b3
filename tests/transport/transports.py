"""The transports that must keep the contract, and how a case runs on all their ranks.

A new transport is one more function here, and its line in TRANSPORTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from transport.contract import CASES, Peer

from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent


def local(ranks: int) -> dict[str, str]:
    """Every rank is a thread of this process; messages come late at random."""
    outcome = {}
    for name, case in CASES.items():
        hub, barrier = _engine.LocalHub(ranks, 200, 1), threading.Barrier(ranks)

        def one(rank: int, hub=hub, barrier=barrier, case=case) -> str:
            try:
                transport = _engine.local_transport(hub, rank)
                case(Peer(transport, lambda: barrier.wait(30.0) and None))
            except Exception as error:  # noqa: BLE001
                barrier.abort()
                return f"rank {rank}: {type(error).__name__}: {error}\n"
            return ""

        with ThreadPoolExecutor(ranks) as pool:
            outcome[name] = "".join(pool.map(one, range(ranks)))
    return outcome


def mpi(ranks: int) -> dict[str, str]:
    """Every rank is a process, started by mpirun; each runs this file."""
    done = subprocess.run(
        ["timeout", "--kill-after=5", "100", "bash", "launch/mpirun.sh", "-n",
         str(ranks), sys.executable, __file__],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    passed = set(done.stdout.split())
    return {name: "" if name in passed else done.stderr for name in CASES}


def main() -> None:
    """One rank: runs all cases; the first rank prints which have passed everywhere."""
    import mpi4py

    mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    world, messages = MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()
    transport = _engine.mpi_transport(messages.py2f())
    try:
        for name, case in CASES.items():
            case(Peer(transport, world.Barrier))
            world.Barrier()
            if world.rank == 0:
                print(name, flush=True)
    except BaseException as error:  # noqa: BLE001
        print(f"rank {world.rank}, {name}: {error!r}", file=sys.stderr, flush=True)
        world.Abort(1)


TRANSPORTS: dict[str, Callable[[int], dict[str, str]]] = {"local": local, "mpi": mpi}

if __name__ == "__main__":
    main()
