"""Costs and savings of the approximate policy.

    mpirun -n 8 python benchmarks/bench_estimates.py --part choose --out FILE.json
    mpirun -n 2 python benchmarks/bench_estimates.py --part learn --out FILE.json
    mpirun -n 8 python benchmarks/bench_estimates.py --part steps --out FILE.json

`choose` measures the decoder's inference against the decode of a full slice, for 10 M
parameters in ten tensors and next to no compute; the last worker is always late.
`learn` measures labels and memory as a share of a step that computes (a GPT on text).
`steps` measures step times against exact ones, with and without a worker that is 10
times as slow, with sleeping passes as in bench_step.py.

Every part adds its results to FILE.json if that exists already.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
from harness import COMM, arguments, environment, say, summary
from jobs import Job
from step_methods import MICRO, Coded, block
from torch import Tensor, nn

import codedgrad
from codedgrad import codes

TENSORS, SIZE = 10, 1_000_000
LATE_S = 0.25  # in `choose`, seconds that the late worker sleeps in each pass
COUNTED = ("slices_decoded", "slices_settled", "decode_s", "choose_s", "learn_s")


class Counting(Coded):
    """The method codedgrad, with the engine's counters in every step."""

    def __init__(self, job: Any, code: codes.Code, **settings: Any) -> None:
        super().__init__(job, code, **settings)
        self.steps_counted: list[dict[str, float]] = []
        self._before = self._counters()
        self._since = 0

    @property
    def estimates(self) -> list[Any]:
        """The estimates of the steps that count."""
        return [e for e in self.gradient.record.estimates if e.step >= self._since]

    def _counters(self) -> dict[str, float]:
        counters = self.gradient._exchange.counters()
        return {name: counters[name] for name in COUNTED}

    def step(self) -> None:
        """Do one step, and count."""
        super().step()
        now = self._counters()
        spent = {name: now[name] - self._before[name] for name in COUNTED}
        report = self.gradient.report
        assert report is not None
        spent["step_s"] = report.step_s
        self.steps_counted.append(spent)
        self._before = now

    def forget(self) -> None:
        """Count from now on."""
        self.steps_counted.clear()
        self._since = self.gradient.step
        self._before = self._counters()


class Flat:
    """A job of a few large tensors, whose gradients differ from shard to shard."""

    def __init__(self, size: int, late_s: float) -> None:
        """Make ten tensors of `size`; the last worker sleeps `late_s` in a pass."""
        torch.manual_seed(0)
        self.model = _Tensors(size, late_s if COMM.rank == COMM.size - 1 else 0.0)
        self.sampler = codedgrad.ShardSampler((torch.randn(512, 2),), 8 * COMM.size)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of one micro-batch."""
        loss: Tensor = self.model(x)
        return loss

    endless = Job.endless


class _Tensors(nn.Module):
    def __init__(self, size: int, late_s: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(size)) for _ in range(TENSORS)]
        )
        self.direction = torch.randn(size)
        self.late_s = late_s

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.late_s)
        a, b = x.mean(0)
        parts = [0.5 * (1.0 + a) * (w @ w) + b * (w @ self.direction) for w in
                 self.weights]  # fmt: skip
        return torch.stack(parts).mean() / self.direction.numel()


def choose(args: argparse.Namespace) -> dict[str, Any]:
    """Measure inference against decode, in one bucket and in buckets by rule."""
    steps, size = (4, 20_000) if args.toy else (args.steps, SIZE)
    code = codes.uncoded(COMM.size)
    out: dict[str, Any] = {"parameters": TENSORS * size}
    for name, bucket_mb in (("one_bucket", 256.0), ("buckets_by_rule", None)):
        settings = {"bucket_mb": bucket_mb, "window": 4}
        never_wait = codedgrad.approximate(math.inf)
        # There are two rounds of both, one session at a time, to save memory.
        exact: list[dict[str, float]] = []
        estimated: list[dict[str, float]] = []
        for _ in range(1 if args.toy else 2):
            exact += counted(Counting(Flat(size, 0.0), code, **settings), steps)
            late = Flat(size, LATE_S)
            approximate = Counting(late, code, policy=never_wait, **settings)
            estimated += counted(approximate, steps)
        row = {
            "buckets": round(exact[0]["slices_decoded"]),
            "decode_ms": per_slice(exact, "decode_s", "slices_decoded"),
            "choose_ms": per_slice(estimated, "choose_s", "slices_settled"),
            "sum_ms": per_slice(estimated, "decode_s", "slices_settled"),
            "learn_ms": per_slice(estimated, "learn_s", "slices_settled"),
        }
        for part in ("choose", "sum", "learn"):
            ratio = row[f"{part}_ms"]["p25_ms"] / row["decode_ms"]["p25_ms"]
            row[f"{part}_over_decode"] = round(ratio, 3)
        out[name] = row
        say(f"{name}: {row}")
    return out


def counted(method: Counting, steps: int) -> list[dict[str, float]]:
    """Run `steps` steps after two; return each one's counters, on all workers."""
    for _ in range(2):
        method.step()
    method.forget()
    for _ in range(steps):
        method.step()
    method.gradient.close()
    return [s for own in COMM.allgather(method.steps_counted) for s in own]


def per_slice(
    steps: list[dict[str, float]], seconds: str, slices: str
) -> dict[str, float]:
    """Summarise seconds per slice, over steps in which all slices were of this kind."""
    all_of_them = [s for s in steps if s[slices] and s[slices] == s["slices_decoded"]]
    return summary([s[seconds] / s[slices] for s in all_of_them])


def learn(args: argparse.Namespace) -> dict[str, Any]:
    """Measure labels and memory against the step, and calm against exact steps."""
    n = COMM.size
    rounds, steps = (1, 2) if args.toy else (4, 6)
    out: dict[str, Any] = {"task": args.task}
    code = codes.uncoded(n, micro=MICRO)
    methods = {
        "exact": Counting(Job(args.task, 8 * n), code),
        "approximate": Counting(
            Job(args.task, 8 * n), code, policy=codedgrad.approximate(0.1)
        ),
        "never_wait": Counting(
            Job(args.task, 8 * n), code, policy=codedgrad.approximate(math.inf)
        ),
    }
    for name, factor in (("calm", 1.0), ("straggler_3x", 3.0)):
        rows = timed(methods, factor, rounds, steps)
        for method, row in rows.items():
            own = methods[method].steps_counted
            totals = {k: sum(s[k] for s in own) for k in (*COUNTED, "step_s")}
            shares = COMM.allgather(
                [totals[k] / totals["step_s"] for k in ("learn_s", "choose_s")]
            )
            row["learn_share"] = round(statistics.fmean(s[0] for s in shares), 5)
            row["learn_share_largest"] = round(max(s[0] for s in shares), 5)
            row["choose_share"] = round(statistics.fmean(s[1] for s in shares), 5)
            settled = COMM.allreduce(totals["slices_settled"])
            row["settled"] = round(
                settled / COMM.allreduce(totals["slices_decoded"]), 3
            )
        out[name] = rows
        say(f"{name}: {rows}")
    return out


def step_times(args: argparse.Namespace) -> dict[str, Any]:
    """Measure exact and approximate steps, calm and with a straggler."""
    n = COMM.size
    rounds, steps = (1, 2) if args.toy else (args.rounds, args.steps)
    spread, uncoded = codes.spread(n, micro=MICRO), codes.uncoded(n, micro=MICRO)
    methods = {
        "exact": Counting(Job("sleep", 32 * n), spread),
        "exact_uncoded": Counting(Job("sleep", 32 * n), uncoded),
    }
    never = {"policy": codedgrad.approximate(0.1, patience=100.0)}
    methods["patient"] = Counting(Job("sleep", 32 * n), spread, **never)
    for error in (0.1, 0.3, math.inf):
        policy = codedgrad.approximate(error)
        methods[f"approximate_{error:g}"] = Counting(
            Job("sleep", 32 * n), spread, policy=policy
        )
    methods["uncoded_inf"] = Counting(
        Job("sleep", 32 * n), uncoded, policy=codedgrad.approximate(math.inf)
    )
    out: dict[str, Any] = {}
    for name, factor in (("calm", 1.0), ("straggler_10x", 10.0)):
        if factor > 1.0:
            methods.pop("patient").gradient.close()
        rows = timed(methods, factor, rounds, steps)
        for method, row in rows.items():
            own = methods[method].steps_counted
            decoded = COMM.allreduce(sum(s["slices_decoded"] for s in own))
            settled = COMM.allreduce(sum(s["slices_settled"] for s in own))
            row["settled"] = round(settled / decoded, 3)
            row["others_ms"] = round(
                1e3 * statistics.median(COMM.bcast([s["step_s"] for s in own])), 3
            )
            row |= errors(methods[method])
        out[name] = rows
        for method, row in rows.items():
            say(f"{name} {method}: {row}")
    return out


def errors(method: Counting) -> dict[str, float]:
    """Return how good all workers' estimates were."""
    found = [e for own in COMM.allgather(method.estimates) for e in own]
    figures = codedgrad.monitor.record.judged(found)
    names = ("known", "predicted", "true", "calibration", "exceeded")
    out = {
        name: round(value, 4)
        for name in names
        if found and (value := figures[name]) is not None
    }
    policy = method.gradient._policy
    known = [e for e in found if e.known]
    if policy is not None and known:
        above = sum(e.truth > policy.max_error for e in known)
        out["above_max_error"] = round(above / len(known), 4)
    return out


def timed(
    methods: dict[str, Counting], factor: float, rounds: int, steps: int
) -> dict[str, Any]:
    """Time blocks of `steps` steps, the methods in turn; the first round warms up."""
    n = COMM.size
    faults = f"slow:worker={n - 1},factor={factor}" if factor > 1 else ""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for name in names:
        methods[name].straggle(faults)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn == 1:
                methods[name].forget()
            spent = block(methods[name], steps)
            if turn > 0:
                seconds[name].append(spent)
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for row in rows.values():
        row["over_exact"] = round(row["median_ms"] / rows["exact"]["median_ms"], 3)
    return rows


PARTS = {"choose": choose, "learn": learn, "steps": step_times}


def main() -> None:
    """Measure one part."""
    parser = arguments(str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--task", choices=("text", "gpt10m"), default="text")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    results = PARTS[args.part](args)
    if COMM.rank == 0 and args.out is not None:
        name = f"{args.part}-{args.task}" if args.part == "learn" else args.part
        parts = {}
        if args.out.exists():
            parts = json.loads(args.out.read_text())["results"]
        parts[f"{name}-{COMM.size}"] = {"environment": environment(), **results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = {"benchmark": "bench_estimates", "results": parts}
        args.out.write_text(json.dumps(text, indent=1) + "\n")
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
