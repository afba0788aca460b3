"""Evaluation: what `codedgrad.evaluate` costs, and what a slow worker costs it.

    mpirun -n 2 python benchmarks/bench_evaluate.py --task images --out FILE.json
    mpirun -n 8 python benchmarks/bench_evaluate.py --task sleep --out FILE.json

*images*: a small convolutional network on random images, nobody slow. The baseline is
what one would write instead: each worker goes through its share, sliced from tensors,
and one all-reduce adds the sums up. The two take turns.

*sleep*: modules that sleep, so that workers which share cores do not slow one another.
In every second evaluation worker 3 is 8 x slow. `bound_over_calm` is a perfect division
of the work among workers of these speeds. The baseline's slow worker is as slow.
Every evaluation's sums are compared with those of the first.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
import torch
from harness import COMM, arguments, interleaved, say, summary, write
from torch import Tensor, nn

import codedgrad

BATCH, FACTOR, SLOW = 64, 8, 3


class Sleeping(nn.Module):
    """A module that takes so many seconds, and no core."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        """Sleep."""
        time.sleep(self.seconds)
        return x * self.scale


def network() -> nn.Module:
    """Return a network whose pass over a batch takes some 10 ms on one core."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def sums_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Return what is summed over the batches."""
    out = model(x)
    return {
        "loss": nn.functional.cross_entropy(out, y, reduction="sum"),
        "right": (out.argmax(1) == y).sum(),
        "count": len(y),
    }


def plain(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray[Any, Any]:
    """Evaluate as one would without codedgrad: a share each, and one all-reduce."""
    batches = -(-len(x) // BATCH)
    first, stop = (batches * (COMM.rank + i) // COMM.size for i in (0, 1))
    total = np.zeros(3)
    model.eval()
    with torch.no_grad():
        for i in range(first, stop):
            here = slice(i * BATCH, (i + 1) * BATCH)
            found = sums_of(model, x[here], y[here])
            total += [found["loss"].item(), found["right"].item(), found["count"]]
    model.train()
    COMM.Allreduce(total.copy(), total)
    return total


def images(*, toy: bool) -> dict[str, Any]:
    """Time both, nobody slow."""
    torch.manual_seed(0)
    batches = 8 if toy else 60
    x = torch.randn(COMM.size * batches * BATCH, 1, 28, 28)
    y = torch.randint(0, 10, (len(x),))
    model = network()
    found: list[dict[str, Any]] = []

    def coded() -> None:
        found.append(
            codedgrad.evaluate(model, (x, y), lambda a, b: sums_of(model, a, b), BATCH)
        )

    actions = {"plain": lambda: plain(model, x, y), "coded": coded}
    seconds = interleaved(actions, 3 if toy else 30, 2)
    if any(one != found[0] for one in found):
        raise SystemExit("the sums differ from one evaluation to the next")
    ratios = [c / p for c, p in zip(seconds["coded"], seconds["plain"], strict=True)]
    return {
        "batches_of_a_worker": batches,
        **{name: summary(s) for name, s in seconds.items()},
        "coded_over_plain": round(
            statistics.median(seconds["coded"]) / statistics.median(seconds["plain"]), 4
        ),
        "median_of_ratios": round(statistics.median(ratios), 4),
    }


def sleep(*, toy: bool) -> dict[str, Any]:
    """Time evaluations with and without a worker that is 8 x slow."""
    batches, rounds = (8, 2) if toy else (32, 10)
    slow = min(SLOW, COMM.size - 1)
    os.environ["CODEDGRAD_FAULTS"] = f"slow:worker={slow},factor={FACTOR},every=2"
    torch.manual_seed(0)
    x = torch.randn(COMM.size * batches * BATCH, 4)
    y = torch.randint(0, 4, (len(x),))
    model = nn.Sequential(*(Sleeping(2.5e-3) for _ in range(4)))
    seconds: dict[str, list[float]] = {"slow": [], "calm": []}
    found: list[dict[str, Any]] = []
    for turn in range(2 * (rounds + 1)):
        COMM.Barrier()
        begin = time.perf_counter()
        found.append(
            codedgrad.evaluate(model, (x, y), lambda a, b: sums_of(model, a, b), BATCH)
        )
        spent = time.perf_counter() - begin
        # The others': a worker that lags may come later, and nobody waits for it.
        spent = max(t for w, t in enumerate(COMM.allgather(spent)) if w != slow)
        if turn >= 2:  # the first ones open the exchange and learn
            seconds["calm" if turn % 2 else "slow"].append(spent)
    if any(one != found[0] for one in found):
        raise SystemExit("the sums differ from one evaluation to the next")
    for module in model:
        module.seconds *= FACTOR if COMM.rank == slow else 1
    COMM.Barrier()
    begin = time.perf_counter()
    plain(model, x, y)
    waiting = time.perf_counter() - begin
    calm, late = (statistics.median(seconds[name]) for name in ("calm", "slow"))
    n = COMM.size
    return {
        "batches_of_a_worker": batches,
        **{name: summary(s) for name, s in seconds.items()},
        "slow_over_calm": round(late / calm, 3),
        "worst_slow_over_calm": round(max(seconds["slow"]) / calm, 3),
        "bound_over_calm": round(n / (n - 1 + 1 / FACTOR), 3),
        "plain_over_calm": round(waiting / calm, 3),
    }


def main() -> None:
    """Run one task."""
    parser = arguments(str(__doc__))
    parser.add_argument("--task", choices=("images", "sleep"), default="images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    results = (images if args.task == "images" else sleep)(toy=args.toy)
    say(f"{args.task}: {results}")
    write(args.out, f"evaluate-{args.task}", results)


if __name__ == "__main__":
    main()
