"""One exchange of a gradient over sockets and by MPI, in the same processes.

    mpirun -n 4 python benchmarks/bench_transports.py --out FILE.json

The workers are connected twice more, by UNIX sockets and by TCP on the loopback, and
the exchanges take turns, so that each finds the same machine. Sums are compared with
the truth before and after the timing.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from bench_exchange import SIZES, CodedgradSum, Steps
from harness import COMM, arguments, interleaved, say, summary, write

import codedgrad
from codedgrad.job import runtime
from codedgrad.job.environment import SocketJob
from codedgrad.job.sockets import proof
from codedgrad.job.sockets.channel import SocketChannel
from codedgrad.job.sockets.world import World

if TYPE_CHECKING:
    from bench_exchange import Sum

    from codedgrad.job.runtime import Runtime


def connected(by: str) -> Runtime:
    """Return a runtime of the same workers over sockets."""
    folder = COMM.bcast(tempfile.mkdtemp(prefix="codedgrad-bench-"))
    token = COMM.bcast(proof.new_token())
    world = World(SocketJob(COMM.rank, COMM.size, token, folder, by=by))
    channel = SocketChannel.of_job(world)
    return runtime.current().over(channel, "worker", range(COMM.size))


def _run(action: Sum) -> None:
    action()


def measure(jobs: dict[str, Runtime], *, toy: bool) -> dict[str, Any]:
    """Return {size: {transport: summary}}."""
    results: dict[str, Any] = {}
    for name, count in SIZES.items():
        steps = Steps(count, torch.device("cpu"))
        actions = {by: CodedgradSum(steps.source, job) for by, job in jobs.items()}
        for by, action in actions.items():
            steps.check(f"{by} at {name}, before the timing,", action)
        rounds = 5 if toy else max(40, min(400, (400 << 20) // count))
        timed = {by: partial(_run, action) for by, action in actions.items()}
        seconds = interleaved(timed, rounds, warm_up=3)
        for by, action in actions.items():
            steps.check(f"{by} at {name}, after the timing,", action)
        rows: dict[str, Any] = {by: summary(s) for by, s in seconds.items()}
        for by, row in rows.items():
            row["best_ms"] = round(min(seconds[by]) * 1e3, 3)
            row["over_mpi"] = round(row["median_ms"] / rows["mpi"]["median_ms"], 3)
        results[name] = rows
        shown = "  ".join(
            f"{by} {r['median_ms']:.3f} ms, best {r['best_ms']:.3f}, "
            f"{r['over_mpi']:.2f} of MPI's"
            for by, r in rows.items()
        )
        say(f"{name:>7}: {shown}")
    return results


def main() -> None:
    """Measure every size."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    jobs = {"mpi": runtime.current()}
    jobs |= {by: connected(by) for by in ("unix", "tcp")}
    results = measure(jobs, toy=args.toy)
    write(args.out, "bench_transports", results)
    for job in list(jobs.values())[1:]:
        job.engine.stop(10.0)
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
