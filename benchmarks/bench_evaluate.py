"""Evaluation: what `codedgrad.evaluate` costs, and what a slow worker costs it.

    mpirun -n 2 python benchmarks/bench_evaluate.py --task images --out FILE.json
    mpirun -n 8 python benchmarks/bench_evaluate.py --task sleep --out FILE.json

*images*: a small convolutional network on random images, nobody slow. The baselines are
what one would write instead: each worker goes through its share, and one all-reduce
adds the sums up. *plain* slices the batches from tensors, which is the fastest loop
that there is; *loader* has a DataLoader make them. All take turns.

*sleep*: modules that sleep, so that workers which share cores do not slow one another.
In every second evaluation worker 3 is 8 x slow. `bound_over_calm` is a perfect division
of the work among workers of these speeds. The baseline's slow worker is as slow.
Every evaluation's sums are compared with those of the first.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import COMM, arguments, interleaved, say, summary, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import codedgrad
from codedgrad.inference.session import session_of
from codedgrad.job.faults import Faults, Injector
from codedgrad.job.runtime import current

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    """Return a network whose pass over a batch takes some 20 ms on one core."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(768, 10),
    )


def sums_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Return what is summed over the batches."""
    out = model(x)
    return {
        "loss": nn.functional.cross_entropy(out, y, reduction="sum"),
        "right": (out.argmax(1) == y).sum(),
        "count": len(y),
    }


def share(batches: int) -> tuple[int, int]:
    """Return the first of this worker's batches, and one past its last."""
    first, stop = (batches * (COMM.rank + i) // COMM.size for i in (0, 1))
    return first, stop


def sliced(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this worker's share, as views of tensors."""
    for i in range(*share(-(-len(x) // BATCH))):
        here = slice(i * BATCH, (i + 1) * BATCH)
        yield x[here], y[here]


def loaded(x: Tensor, y: Tensor) -> DataLoader[Any]:
    """Return a DataLoader of this worker's share."""
    first, stop = share(-(-len(x) // BATCH))
    mine = Subset(TensorDataset(x, y), range(first * BATCH, min(len(x), stop * BATCH)))
    return DataLoader(mine, BATCH)


def plain(
    model: nn.Module, batches: Iterable[Sequence[Tensor]]
) -> np.ndarray[Any, Any]:
    """Evaluate as one would without codedgrad, with one all-reduce at the end."""
    total = np.zeros(3)
    model.eval()
    with torch.no_grad():
        for x, y in batches:
            found = sums_of(model, x, y)
            total += [found["loss"].item(), found["right"].item(), found["count"]]
    model.train()
    COMM.Allreduce(total.copy(), total)
    return total


def images(*, toy: bool) -> dict[str, Any]:
    """Time both, nobody slow."""
    torch.manual_seed(0)
    batches = 8 if toy else 32
    x = torch.randn(COMM.size * batches * BATCH, 1, 28, 28)
    y = torch.randint(0, 10, (len(x),))
    model = network()
    found: list[dict[str, Any]] = []

    def coded() -> None:
        found.append(
            codedgrad.evaluate(model, (x, y), lambda a, b: sums_of(model, a, b), BATCH)
        )

    actions = {
        "plain": lambda: plain(model, sliced(x, y)),
        "loader": lambda: plain(model, loaded(x, y)),
        "coded": coded,
    }
    seconds = interleaved(actions, 3 if toy else 18, 2)
    if any(one != found[0] for one in found):
        raise SystemExit("the sums differ from one evaluation to the next")
    return {
        "batches_of_a_worker": batches,
        **{name: summary(s) for name, s in seconds.items()},
        "coded_over_plain": _ratio(seconds["coded"], seconds["plain"]),
        "coded_over_loader": _ratio(seconds["coded"], seconds["loader"]),
    }


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios, round by round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return round(statistics.median(ratios), 4)


def sleep(*, toy: bool) -> dict[str, Any]:
    """Time evaluations with and without a worker that is 8 x slow."""
    batches, rounds = (8, 2) if toy else (32, 10)
    slow = min(SLOW, COMM.size - 1)
    session = session_of(current())
    first = session.number  # every second evaluation from here on
    plan = f"slow:worker={slow},factor={FACTOR},every=2,steps={first}-1000000"
    session.injector = Injector(Faults.parse(plan, COMM.size), COMM.rank)
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
    plain(model, sliced(x, y))
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
    parser.add_argument("--task", choices=("images", "sleep", "both"), default="both")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    tasks = {"images": images, "sleep": sleep}
    wanted = tasks if args.task == "both" else [args.task]
    results = {name: tasks[name](toy=args.toy) for name in wanted}
    say(str(results))
    write(args.out, "bench_evaluate", results)


if __name__ == "__main__":
    main()
