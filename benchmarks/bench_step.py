"""Whole training steps, with and without a straggler: codedgrad, Horovod, DDP.

    mpirun -n 8 python benchmarks/bench_step.py --task sleep --out FILE.json
    mpirun -n 4 python benchmarks/bench_step.py --task digits --out FILE.json

A block is a few consecutive steps of one method; the methods take turns block by
block, in one run. A step's time is the block's wall clock, from all workers' start to
the last one's end, divided by its steps. The last worker is the straggler.

`sleep`: the pass is a sleep, so that many workers fit a few cores; the model is small
but real. `device`: 10 M parameters in layers whose passes are sleeps, as if they were
computed elsewhere. Other tasks compute for real, as launch/train.py does.

`--overlap both` adds codedgrad without overlap, and the same steps without exchange.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    COMM,
    arguments,
    device_of,
    say,
    start_torch,
    summary,
    synchronize,
    write,
)
from jobs import TASKS, Job
from torch import Tensor, nn

import codedgrad
from codedgrad import Faults, codes
from codedgrad.boundaries import Boundaries
from codedgrad.faults import Injector

if TYPE_CHECKING:
    from collections.abc import Callable

MICRO = 4


class Coded:
    """codedgrad, explicit face."""

    def __init__(self, job: Job, code: codes.Code, **how: Any) -> None:
        self.job = job
        self.gradient = codedgrad.CodedGradient(job.model, code, **how)
        self.steps = job.endless(code.parts)

    def straggle(self, faults: str) -> None:
        """Inject this slowness from now on."""
        plan = Faults.parse(faults, COMM.size)
        self.gradient._passes._injector = Injector(plan, COMM.rank) if plan else None

    def step(self) -> None:
        """One step."""
        self.gradient.backward(self.job.forward, next(self.steps))
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


class Synchronous:
    """What Horovod and DDP have in common: local passes, then one exchange."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.boundaries = Boundaries(job.model)
        self.injector: Injector | None = None
        self.steps = job.endless(MICRO * COMM.size)
        self.count = 0

    def straggle(self, faults: str) -> None:
        """Inject this slowness from now on."""
        plan = Faults.parse(faults, COMM.size)
        self.injector = Injector(plan, COMM.rank) if plan else None

    def passes(self, loss: Callable[[int, Tensor, Tensor], None]) -> None:
        """The worker's micro-batches, stretched where it is a straggler."""
        shards = next(self.steps)
        if self.injector is not None:
            self.injector.begin(self.count, self.job.pass_s)
        self.count += 1
        injector = self.injector
        for micro in range(MICRO):
            batch = shards.fetch(COMM.rank * MICRO + micro)
            if injector is None:
                loss(micro, *batch)
                continue
            injector.resume()
            with self.boundaries.watch(lambda: injector.boundary(lambda: None)):
                loss(micro, *batch)
            injector.boundary(lambda: None)


class Horovod(Synchronous):
    """Horovod's DistributedOptimizer, accumulating the same micro-batches."""

    def __init__(self, job: Job, *, pauses: bool) -> None:
        """`pauses`: shut it down after each of its blocks."""
        super().__init__(job)
        import horovod.torch as hvd

        self.hvd, self.pauses = hvd, pauses
        hvd.init()
        self.optimizer = hvd.DistributedOptimizer(
            job.optimizer,
            named_parameters=job.model.named_parameters(),
            backward_passes_per_step=MICRO,
        )

    def enter(self) -> None:
        """Start its background thread."""
        if self.pauses:
            self.hvd.init()

    def leave(self) -> None:
        """End it: it looks for work every millisecond, on the others' cores."""
        if self.pauses:
            self.hvd.shutdown()

    def step(self) -> None:
        """One step."""

        def one(_micro: int, x: Tensor, y: Tensor) -> None:
            (self.job.forward(x, y) / MICRO).backward()

        self.passes(one)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ddp(Synchronous):
    """torch's DistributedDataParallel, on Gloo or NCCL."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.wrapped = nn.parallel.DistributedDataParallel(job.model)
        job.model = self.wrapped

    def step(self) -> None:
        """One step."""

        def one(micro: int, x: Tensor, y: Tensor) -> None:
            self.wrapped.require_backward_grad_sync = micro == MICRO - 1
            (self.job.forward(x, y) / MICRO).backward()

        self.passes(one)
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


class Alone(Synchronous):
    """The same steps of the own shard alone: what they take without an exchange."""

    def step(self) -> None:
        """One step."""
        self.passes(lambda _, x, y: (self.job.forward(x, y) / MICRO).backward())
        self.job.optimizer.step()
        self.job.optimizer.zero_grad()


def methods(args: Any) -> dict[str, Any]:
    """Each with a job of its own."""
    n = COMM.size

    def job() -> Job:
        return Job(args.task, args.batch_size * n, MICRO, args.device)

    code = codes.spread(n, micro=MICRO)
    how = {"bucket_mb": args.bucket_mb, "wire": args.wire}
    made: dict[str, Any] = {
        "codedgrad": Coded(job(), code, overlap=args.overlap != "off", **how),
        "codedgrad_uncoded": Coded(
            job(), codes.uncoded(n, micro=MICRO), overlap=args.overlap != "off", **how
        ),
    }
    if args.overlap == "both":
        made["codedgrad_no_overlap"] = Coded(job(), code, overlap=False, **how)
        made["no_exchange"] = Alone(job())
    made[f"ddp_{torch.distributed.get_backend()}"] = Ddp(job())
    if not args.horovod:
        return made
    try:
        made["horovod"] = Horovod(job(), pauses=args.pause_horovod)
        made["horovod"].leave()
    except ImportError:
        say("Horovod is not installed: left out")
    return made


def block(method: Any, steps: int) -> float:
    """Seconds per step of `steps` steps, the slowest worker's."""
    getattr(method, "enter", lambda: None)()
    method.step()  # the first one finds caches cold
    synchronize(next(method.job.model.parameters()).device)
    COMM.Barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        method.step()
    synchronize(next(method.job.model.parameters()).device)
    spent = time.perf_counter() - begin
    getattr(method, "leave", lambda: None)()
    return COMM.allreduce(spent, op=_max) / steps


def _max(a: float, b: float) -> float:
    return max(a, b)


def scenario(made: dict[str, Any], factor: float, args: Any) -> dict[str, Any]:
    """All methods with one worker `factor` times as slow."""
    faults = f"slow:worker={COMM.size - 1},factor={factor}" if factor > 1 else ""
    names = list(made)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        made[name].straggle(faults)
    rounds, steps = (2, 3) if args.toy else (args.rounds, args.steps)
    if factor > 8 and not args.toy:
        rounds, steps = max(3, rounds // 3), max(3, steps // 3)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent = block(made[name], steps)
            if turn > 0:  # the first round warms up
                seconds[name].append(spent)
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for name, method in made.items():
        if isinstance(method, Coded):
            reports = method.gradient.record.reports
            rows[name]["redundant_passes"] = sum(r.redundant_passes for r in reports)
            reports.clear()
    if args.overlap == "both" and factor == 1:
        ours, late, none = (
            rows[name]["median_ms"]
            for name in ("codedgrad", "codedgrad_no_overlap", "no_exchange")
        )
        hidden = round((late - ours) / (late - none), 3) if late > none else None
        rows["codedgrad"]["exchange_hidden"] = hidden
    return rows


def main() -> None:
    """Measure every scenario."""
    parser = arguments(str(__doc__))
    parser.add_argument("--task", choices=TASKS, default="sleep")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--overlap", choices=("on", "off", "both"), default="on")
    parser.add_argument("--bucket-mb", type=float, help="default: by codedgrad's rule")
    parser.add_argument(
        "--wire", choices=("float32", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="of one worker")
    parser.add_argument("--factors", default="1,2,8,40")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument(
        "--horovod", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument(
        "--pause-horovod",
        action="store_true",
        help="shut it down between its blocks (0.28.1 may hang so with 8 workers)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    args.device = device_of(args.device)
    start_torch(args.device)
    made = methods(args)
    results: dict[str, Any] = {
        "task": args.task,
        "device": args.device.type,
        "micro_batches": MICRO,
        "batch_size_of_a_worker": args.batch_size,
        "bucket_mb": args.bucket_mb,
        "wire": args.wire,
    }
    n = COMM.size
    calm = None
    for factor in [float(f) for f in args.factors.split(",")]:
        if factor > 1 and n == 1:
            continue
        rows = scenario(made, factor, args)
        calm = calm or rows["codedgrad"]["median_ms"]
        for row in rows.values():
            row["over_calm_codedgrad"] = round(row["median_ms"] / calm, 3)
            row["codedgrad_over_this"] = round(
                rows["codedgrad"]["median_ms"] / row["median_ms"], 3
            )
        bound = round(n / (n - 1 + 1 / factor), 3)
        results[f"straggler_{factor:g}x"] = {"bound_over_calm": bound, **rows}
        shown = "  ".join(
            f"{m} {r['median_ms']:.1f} ms ({r['over_calm_codedgrad']:.2f})"
            for m, r in rows.items()
        )
        say(f"straggler {factor:g} x, bound {bound}: {shown}")
    write(args.out, "bench_step", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
