"""Measure steps in which nobody is made slow: the default beside `same_bits=True`.

    bash launch/mpirun.sh -n 4 python launch/calm.py --out FILE.json

Two copies of the digits CNN train in one job and take turns, some steps each. What
else the machine does then meets both alike; in two jobs, one after the other, it may
meet one of them only. The first turns do not count: they hold what happens once (the
trial of the loss function, first allocations).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tasks
import torch
from torch import Tensor

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_UP = 2  # turns
STEPS = 8  # of a turn


def main() -> None:
    """Measure both, print a line and write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=16, help="of each that count")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    codedgrad.init()
    runs = {"calm_step_s": training(False), "calm_same_bits_step_s": training(True)}
    turns: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(WARM_UP + args.turns):
        for name in names if turn % 2 else reversed(names):
            turns[name].append(seconds_per_step(runs[name]))
    result = {n: statistics.median(s[WARM_UP:]) for n, s in turns.items()}
    result["calm_over_same_bits"] = statistics.median(
        a / b for a, b in zip(*(s[WARM_UP:] for s in turns.values()), strict=True)
    )
    if codedgrad.rank() == 0:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"default {1e3 * result['calm_step_s']:.1f} ms, same_bits=True "
            f"{1e3 * result['calm_same_bits_step_s']:.1f} ms, "
            f"{args.turns} turns of {STEPS} steps each"
        )
    codedgrad.shutdown()


def training(same_bits: bool) -> Iterator[None]:
    """Train without an end; every item is a step."""
    task = tasks.make("digits")
    codedgrad.broadcast_parameters(task.model.state_dict())
    sampler = codedgrad.ShardSampler(task.train, task.batch_size, drop_last=True)
    coded = codedgrad.CodedGradient(task.model, same_bits=same_bits)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        return task.loss(task.model(x), y)

    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            coded.backward(loss_fn, shards)
            optimizer.step()
            optimizer.zero_grad()
            yield
        epoch += 1


def seconds_per_step(steps: Iterator[None]) -> float:
    """Take a turn, and return the slowest worker's seconds per step."""
    codedgrad.barrier()
    begin = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    spent = time.perf_counter() - begin
    return float(codedgrad.allreduce(spent, op="max")) / STEPS


if __name__ == "__main__":
    main()
