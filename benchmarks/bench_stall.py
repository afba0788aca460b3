"""The longest step of the others when one worker stops once.

    mpirun -n 8 python benchmarks/bench_stall.py --out FILE.json

Passes are 50 ms sleeps, as in bench_step. There are three scenarios, each in the middle
of a calm run: a stall of 10 passes (inside the window of 16 steps), one of 40 passes
(beyond it), and a worker whose main thread holds Python's GIL for one second.
"""

from __future__ import annotations

import ctypes
import statistics
from typing import Any

import torch
from harness import COMM, arguments, say, write
from jobs import PASS_S, Job
from step_methods import MICRO, Coded
from torch import Tensor

import codedgrad
from codedgrad import codes

CALM_STEPS = 20
AFTER_STEPS = 40


class Holding(Job):
    """A job in which a pass can keep this process from running any Python."""

    hold_s = 0.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; hold the GIL for `hold_s` before, once."""
        seconds, self.hold_s = self.hold_s, 0.0
        if seconds:
            ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return super().forward(x, y)


def scenario(coded: Coded, kind: str, seconds: float) -> dict[str, Any]:
    """Run calm steps, the stop and more steps; return the others' step times."""
    stopped = COMM.size - 1
    reports = coded.gradient.record.reports
    reports.clear()
    COMM.Barrier()
    first = coded.gradient.step
    if kind == "stall":
        step = first + CALM_STEPS
        coded.straggle(f"stall:worker={stopped},step={step},seconds={seconds}")
    for turn in range(CALM_STEPS + AFTER_STEPS):
        if kind == "gil" and turn == CALM_STEPS and COMM.rank == stopped:
            coded.job.hold_s = seconds
        coded.step()
    coded.straggle("")
    calm = statistics.median(r.step_s for r in reports[3:CALM_STEPS])
    after = sorted(r.step_s for r in reports[CALM_STEPS:])
    own = (calm, after[-1], after[-2], sum(r.backpressure_s for r in reports))
    everyone = COMM.allgather(own)
    others = [v for w, v in enumerate(everyone) if w != stopped]
    calm_s = statistics.median(v[0] for v in others)
    return {
        "seconds": seconds,
        "calm_step_ms": round(calm_s * 1e3, 2),
        "longest_step_ms": round(max(v[1] for v in others) * 1e3, 2),
        "longest_over_calm": round(max(v[1] for v in others) / calm_s, 3),
        "second_longest_over_calm": round(max(v[2] for v in others) / calm_s, 3),
        "waited_for_window_s": round(max(v[3] for v in others), 3),
    }


def main() -> None:
    """Run the scenarios."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    n = COMM.size
    coded = Coded(Holding("sleep", 32 * n), codes.spread(n, micro=MICRO))
    results = {}
    for name, kind, seconds in (
        ("stall_10_passes", "stall", 10 * PASS_S),
        ("stall_40_passes", "stall", 40 * PASS_S),
        ("gil_held_1_s", "gil", 1.0),
    ):
        results[name] = scenario(coded, kind, 0.1 if args.toy else seconds)
        say(f"{name}: {results[name]}")
    write(args.out, "bench_stall", results)
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
