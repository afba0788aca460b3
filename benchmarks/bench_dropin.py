"""An unmodified loop with estimates: accuracy and time, by classes, one worker slow.

    mpirun -n 4 python benchmarks/bench_dropin.py --out FILE.json

Each worker has a quarter of the digits, sorted by class, and no other worker computes
them. The loop is torch's own with a `DistributedOptimizer`: calm and exact, and with
`policy=approximate(inf)` while worker 1 is 10 x slow. A pass sleeps for as long as its
samples take, so that two cores are enough for four workers. The time of a step counts
until all workers have ended.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from harness import arguments, say, write
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import codedgrad

BATCH, SLOW, HELD_OUT = 32, 10, 360
CASES: dict[str, dict[str, Any]] = {
    "exact, calm": {},
    "approximate, slow": {
        "policy": codedgrad.approximate(math.inf),
        "faults": f"slow:worker=1,factor={SLOW}",
    },
}


class Model(nn.Sequential):
    """A small network whose samples take their time."""

    def __init__(self, sample_s: float) -> None:
        """`sample_s`: seconds for each sample."""
        super().__init__(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.sample_s = sample_s

    def forward(self, x: Tensor) -> Tensor:
        """Wait, and return the logits."""
        time.sleep(self.sample_s * len(x))
        logits: Tensor = super().forward(x)
        return logits


def data(seed: int) -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    """Return this worker's samples, and those that are held out."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)
    labels = labels[order]
    train = torch.argsort(labels[HELD_OUT:], stable=True) + HELD_OUT
    own = train.tensor_split(codedgrad.size())[codedgrad.rank()]
    own = own[: len(train) // codedgrad.size()]
    return (
        TensorDataset(images[own], labels[own]),
        (images[:HELD_OUT], labels[:HELD_OUT]),
    )


def trained(seed: int, steps: int, sample_s: float, how: dict[str, Any]) -> list[float]:
    """Return accuracy, seconds of a step, and the share of worker 1's empty passes."""
    dataset, (x, y) = data(seed)
    torch.manual_seed(seed)
    model = Model(sample_s)
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model.named_parameters(),
        model=model,
        **(how if codedgrad.size() > 1 else {}),
    )
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    begin, made = time.monotonic(), 0
    with optimizer.closing():
        while made < steps:
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                made += 1
                if made == steps:
                    break
        codedgrad.barrier()
        step_s = (time.monotonic() - begin) / steps
    right = (model(x).argmax(1) == y).float().mean().item()
    empty = sum(report.fast_forwarded for report in optimizer.record.reports) / steps
    every = codedgrad.allgather_object(empty)
    return [right, step_s, every[min(1, codedgrad.size() - 1)]]


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Train all cases with three seeds; worker 0 writes and prints."""
    args = arguments(str(__doc__)).parse_args(words)
    codedgrad.init()
    steps, sample_s, seeds = (6, 1e-4, [0]) if args.toy else (400, 6e-4, [0, 1, 2])
    results: dict[str, Any] = {"workers": codedgrad.size(), "steps": steps}
    for case, how in CASES.items():
        runs = [trained(seed, steps, sample_s, how) for seed in seeds]
        accuracy, step_s, empty = (list(column) for column in zip(*runs, strict=True))
        results[case] = {
            "accuracy_percent": [round(100 * a, 2) for a in accuracy],
            "step_ms": [round(1e3 * s, 2) for s in step_s],
            "empty_passes_of_worker_1": [round(e, 3) for e in empty],
        }
        say(
            f"{case}: {100 * statistics.fmean(accuracy):.2f} %, "
            f"{1e3 * statistics.median(step_s):.1f} ms a step"
        )
    write(args.out, "bench_dropin", results)
    return results


if __name__ == "__main__":
    main()
