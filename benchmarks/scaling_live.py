"""The live half of bench_scaling: one number of workers, started by mpirun.

weak    Every worker has a pass of 50 ms, however many workers there are.
strong  The workers share 400 ms, so that a pass takes 400 ms / n.

A pass is a sleep beside a small real model, so that many workers fit a few cores.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from bench_exchange import measure
from bench_step import methods, scenario
from harness import COMM, device_of, say, start_torch, write
from jobs import PASS_S
from step_methods import MICRO

import codedgrad

if TYPE_CHECKING:
    from pathlib import Path

STRONG_S = 0.4  # seconds of the passes of all workers together
SIZES = {
    "4 KB": 1 << 10,
    "40 KB": 10 << 10,
    "400 KB": 100 << 10,
    "4 MB": 1 << 20,
    "40 MB": 10 << 20,
}
SLOW = 8.0
WARM_UP = 20  # steps after a change of the pass, more than codedgrad remembers
ROUNDS = {1.0: (3, 4), SLOW: (2, 2)}  # factor: rounds, steps of a block


def pass_s(regime: str, *, toy: bool) -> float:
    """Return the seconds of a pass."""
    whole = PASS_S if regime == "weak" else STRONG_S / COMM.size
    return whole / 5 if toy else whole


def live(args: argparse.Namespace, out: Path | None) -> None:
    """Measure and write; `args` has toy, horovod, device and parts."""
    torch.set_num_threads(1)
    codedgrad.init()
    device = device_of(args.device)
    start_torch(device)
    results: dict[str, Any] = {
        "workers": COMM.size,
        "workers_of_a_machine": codedgrad.local_size(),
        "device": device.type,
    }
    if "exchange" in args.parts:
        results["exchange"] = measure(SIZES, device, toy=args.toy, horovod=args.horovod)
    if "steps" in args.parts:
        results |= steps(args, device)
    write(out, "bench_scaling", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


def steps(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return {"weak", "strong": {scenario: {method: summary}}}."""
    settings = argparse.Namespace(
        task="sleep",
        batch_size=32,
        bucket_mb=None,
        wire="float32",
        overlap="on",
        horovod=args.horovod,
        horovod_aside=False,
        same_micro_batches=False,
        pieces="",
        default_pieces=MICRO,  # those of scaling_model.DEFAULT
        device=device,
        toy=args.toy,
    )
    compared = methods(settings)
    alone = compared["no_exchange"].job
    weights = sum(p.numel() for p in alone.model.parameters())
    found: dict[str, Any] = {"gradient_bytes": 4 * weights}
    for regime in ("weak", "strong"):
        seconds = pass_s(regime, toy=args.toy)
        rows: dict[str, Any] = {"pass_ms": round(1e3 * seconds, 3)}
        for factor, (settings.rounds, settings.steps) in ROUNDS.items():
            if factor > 1 and COMM.size == 1:
                continue
            for method in compared.values():
                method.job.last_for(seconds)
                method.straggle("")
                for _ in range(2 if args.toy else WARM_UP):
                    method.step()
            cell = scenario(compared, factor, settings)
            rows[f"straggler_{factor:g}x"] = cell
            shown = "  ".join(f"{m} {r['median_ms']:.1f}" for m, r in cell.items())
            say(f"{COMM.size} workers, {regime}, straggler {factor:g} x, ms: {shown}")
        found[regime] = rows
    return found
