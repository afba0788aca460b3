"""Whole processes that are stopped by SIGSTOP: what the others lose by it.

    mpirun -n 5 python benchmarks/bench_faults.py --out FILE.json

Passes are 50 ms sleeps, so that workers which share cores do not slow one another. One
worker stops, then two at a time, for 5 s, at several moments of a pass; SIGCONT wakes
them. `bound_over_calm` is what a perfect division of the step's passes among those who
are left would give, since all passes are needed for the same bits. The bits are
compared with those of a run without a fault.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from itertools import pairwise
from typing import Any

import torch
from harness import COMM, arguments, say, write
from jobs import PASS_S, Job
from step_methods import MICRO, Coded

import codedgrad
from codedgrad import codes
from codedgrad.job.faults import stop_process

CALM_STEPS, AFTER_STEPS = 20, 40


def train(
    window: int, pass_s: float, steps: int, stop: tuple[float, float] | None
) -> tuple[str, list[float], float]:
    """Train from the start; return a digest, when steps began, and the stop's time.

    Args:
        window: how far a worker may lag, in steps.
        pass_s: seconds of a pass.
        steps: how many.
        stop: how many passes after a step's begin this process is stopped, and for how
            many seconds; None: it is not.
    """
    job = Job("sleep", 32 * COMM.size)
    job.last_for(pass_s)
    coded = Coded(job, codes.spread(COMM.size, micro=MICRO), window=window)
    began, stopped_at = [], 0.0

    def sleep_and_stop(after_s: float, seconds: float) -> None:
        nonlocal stopped_at
        time.sleep(after_s)
        stopped_at = time.monotonic()
        stop_process(seconds)

    COMM.Barrier()
    for step in range(steps):
        began.append(time.monotonic())
        if step == CALM_STEPS and stop is not None:
            after_s, seconds = stop[0] * pass_s, stop[1]
            threading.Thread(target=sleep_and_stop, args=(after_s, seconds)).start()
        coded.step()
    began.append(time.monotonic())
    digest = hashlib.sha256()
    for parameter in job.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    coded.gradient.close()
    return digest.hexdigest(), began, stopped_at


def scenario(stopped: list[int], moment: float, seconds: float) -> dict[str, Any]:
    """Stop these workers for so long, `moment` passes after a step has begun."""
    n = COMM.size
    steps = CALM_STEPS + AFTER_STEPS + int(seconds / PASS_S)
    window = 32 + int(seconds / PASS_S)
    calm, _, _ = train(window, 0.0, steps, None)
    mine = COMM.rank in stopped
    bits, began, at = train(window, PASS_S, steps, (moment, seconds) if mine else None)
    at = max(COMM.allgather(at))
    longs = [(b - a, b) for a, b in pairwise(began)]
    usual = statistics.median(s for s, _ in longs[3:CALM_STEPS])
    while_s = [s for s, end in longs if at + 2 * usual < end < at + seconds]
    longest, end = max(long for long in longs if long[1] > at)
    lasting = statistics.median(while_s or [0.0])
    everyone = COMM.allgather((usual, longest, lasting, end - longest - at))
    others = [v for w, v in enumerate(everyone) if w not in stopped]
    longest = max(others, key=lambda v: v[1])
    usual = statistics.median(v[0] for v in others)
    digests = COMM.allgather((calm, bits))
    return {
        "stopped": stopped,
        "moment_passes": moment,
        "seconds": seconds,
        "calm_step_ms": round(usual * 1e3, 2),
        "longest_step_ms": round(longest[1] * 1e3, 2),
        "longest_over_calm": round(longest[1] / usual, 3),
        "longest_began_s_after_the_stop": round(longest[3], 3),
        "while_it_lasts_over_calm": round(max(v[2] for v in others) / usual, 3),
        "bound_over_calm": round(n / (n - len(stopped)), 3),
        "same_bits_as_calm": len({d for pair in digests for d in pair}) == 1,
    }


def main() -> None:
    """Run the scenarios."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    n = COMM.size
    moments = [0.5] if args.toy else [0.1, 0.5, 0.9]
    results = {}
    for name, stopped in (("one", [n - 2]), ("two", [1, 2])):
        if len(stopped) > (n - 1) // 2:
            continue
        for moment in moments:
            found = scenario(stopped, moment, 0.5 if args.toy else 5.0)
            results[f"{name}_at_{moment}"] = found
            say(f"{name}: {found}")
            if not found["same_bits_as_calm"]:
                raise SystemExit("the bits differ from those of the calm run")
    write(args.out, "bench_faults", results)
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
