"""Whole training steps of codedgrad, Horovod and DDP, with and without a straggler.

    mpirun -n 8 python benchmarks/bench_step.py --task sleep --out FILE.json
    mpirun -n 4 python benchmarks/bench_step.py --task digits --out FILE.json

A block is a few consecutive steps of one method; the methods take turns block by
block, in one run. A step's time is the block's wall clock, from all workers' start to
the last one's end, divided by its steps. The last worker is the straggler.

In the task `sleep` the pass is a sleep, so that many workers fit a few cores; the model
is small but real. In `device` there are 10 M parameters in layers whose passes are
sleeps, as if they were computed elsewhere. Other tasks compute as launch/train.py does.

Horovod, DDP and the steps without an exchange are loops as users write them: one whole
pass over a worker's samples a step. `codedgrad` is the default, `codedgrad_same_bits`
computes its micro-batches as passes of their own, and `--same-micro-batches` gives
Horovod and DDP the same ones, as a second column. `--overlap both` adds codedgrad
without overlap, and steps without an exchange in lockstep. `--pieces` adds the default
with other numbers of pieces of a late shard.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from aside import Aside
from harness import COMM, arguments, device_of, say, start_torch, summary, write
from jobs import TASKS, Job
from step_methods import MICRO, Alone, Coded, Ddp, Horovod, Lockstep, in_turns

import codedgrad
from codedgrad import codes


def methods(args: Any) -> dict[str, Any]:
    """Return the methods to compare, each with a job of its own."""
    n = COMM.size

    def job() -> Job:
        return Job(args.task, args.batch_size * n, args.device)

    code = codes.spread(n, micro=MICRO)
    default = codes.spread(n, micro=args.default_pieces)
    settings = {
        "bucket_mb": args.bucket_mb,
        "wire": args.wire,
        "overlap": args.overlap != "off",
        "same_bits": False,
    }
    uncoded = codes.uncoded(n, micro=MICRO)
    compared: dict[str, Any] = {
        "codedgrad": Coded(job(), default, **settings),
        "codedgrad_same_bits": Coded(job(), code, **{**settings, "same_bits": True}),
        "codedgrad_uncoded": Coded(job(), uncoded, **settings),
        "no_exchange": Alone(job()),
    }
    for pieces in map(int, args.pieces.split(",") if args.pieces else ()):
        other = codes.spread(n, micro=pieces)
        compared[f"codedgrad_{pieces}_pieces"] = Coded(job(), other, **settings)
    if args.overlap == "both":
        compared["codedgrad_no_overlap"] = Coded(
            job(), code, **{**settings, "overlap": False}
        )
        compared["lockstep"] = Lockstep(job())
    backend = torch.distributed.get_backend()
    for passes in (1, MICRO) if args.same_micro_batches else (1,):
        suffix = "" if passes == 1 else f"_{passes}_passes"
        compared[f"ddp_{backend}{suffix}"] = Ddp(job(), passes)
        if not args.horovod:
            continue
        try:
            if args.horovod_aside:
                other: Any = Aside(args.task, args.batch_size, passes)
            else:
                other = Horovod(job(), passes)
        except ImportError:
            say("Horovod is not installed: left out")
        else:
            compared[f"horovod{suffix}"] = other
    return compared


def scenario(compared: dict[str, Any], factor: float, args: Any) -> dict[str, Any]:
    """Time all methods with one worker `factor` times as slow."""
    faults = f"slow:worker={COMM.size - 1},factor={factor}" if factor > 1 else ""
    for method in compared.values():
        method.straggle(faults)
    rounds, steps = (1, 2) if args.toy else (args.rounds, args.steps)
    if factor > 8 and not args.toy:
        rounds, steps = max(3, rounds // 3), max(3, steps // 3)
    seconds = in_turns(compared, rounds, steps)
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for name, row in rows.items():
        row["codedgrad_over_this"] = round(
            rows["codedgrad"]["median_ms"] / row["median_ms"], 3
        )
        row["codedgrad_over_this_by_round"] = round(
            statistics.median(map(_over, seconds["codedgrad"], seconds[name])), 3
        )
    for name, method in compared.items():
        if isinstance(method, Coded):
            reports = method.gradient.record.reports
            rows[name]["redundant_passes"] = sum(r.redundant_passes for r in reports)
            reports.clear()
    if args.overlap == "both" and factor == 1:
        ours, late = (
            rows[name]["median_ms"] for name in ("codedgrad", "codedgrad_no_overlap")
        )
        for name, floor in (("", "no_exchange"), ("_of_lockstep", "lockstep")):
            least = rows[floor]["median_ms"]
            hidden = round((late - ours) / (late - least), 3) if late > least else None
            rows["codedgrad"][f"exchange_hidden{name}"] = hidden
    return rows


def _over(a: float, b: float) -> float:
    return a / b


def options() -> Any:
    """Return what the command line says."""
    parser = arguments(str(__doc__))
    parser.add_argument("--task", choices=TASKS, default="sleep")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--overlap", choices=("on", "off", "both"), default="on")
    parser.add_argument("--bucket-mb", type=float, help="default: by codedgrad's rule")
    parser.add_argument(
        "--wire", choices=("float32", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="of one worker")
    parser.add_argument(
        "--same-micro-batches",
        action="store_true",
        help="Horovod and DDP also with codedgrad's micro-batches as passes of theirs",
    )
    parser.add_argument("--factors", default="1,2,8,40")
    parser.add_argument("--pieces", default="", help='of a late shard, e.g. "4,7"')
    parser.set_defaults(default_pieces=codes.usual_pieces(COMM.size))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument(
        "--horovod", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument(
        "--horovod-aside",
        action="store_true",
        help="in processes of its own, stopped but for its blocks; one machine, CPU",
    )
    return parser.parse_args()


def main() -> None:
    """Measure every scenario."""
    args = options()
    torch.set_num_threads(1)
    codedgrad.init()
    args.device = device_of(args.device)
    start_torch(args.device)
    compared = methods(args)
    results: dict[str, Any] = {
        "task": args.task,
        "device": args.device.type,
        "micro_batches": MICRO,
        "pieces": args.default_pieces,
        "batch_size_of_a_worker": args.batch_size,
        "bucket_mb": args.bucket_mb,
        "wire": args.wire,
    }
    n = COMM.size
    calm = None
    for factor in [float(f) for f in args.factors.split(",")]:
        if factor > 1 and n == 1:
            continue
        rows = scenario(compared, factor, args)
        calm = calm or rows["codedgrad"]["median_ms"]
        for row in rows.values():
            row["over_calm_codedgrad"] = round(row["median_ms"] / calm, 3)
        bound = round(n / (n - 1 + 1 / factor), 3)
        results[f"straggler_{factor:g}x"] = {"bound_over_calm": bound, **rows}
        shown = "  ".join(
            f"{m} {r['median_ms']:.1f} ms ({r['over_calm_codedgrad']:.2f})"
            for m, r in rows.items()
        )
        say(f"straggler {factor:g} x, bound {bound}: {shown}")
    write(args.out, "bench_step", results)
    for method in compared.values():
        if isinstance(method, Aside):
            method.close()
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
