"""Data pipelines: samples that cost time, with loader processes on both sides.

    mpirun -n 2 python benchmarks/bench_data.py --out FILE.json
    mpirun -n 4 python benchmarks/bench_data.py --slow 8 --pieces 4 --kinds free,sleep \
        --rounds 3 --out FILE.json

The samples of a step of 32 take nothing, 2 ms of sleep or 2 ms of computing each. They
are read by DDP on Gloo with a DataLoader, by codedgrad's default with as many loader
processes of its own, and by codedgrad inside the passes (`codedgrad_in_the_pass`). A
pass is a small real model and a sleep, which is the device of a worker that waits for
it. The methods take turns, block by block, and only one of them has loader processes at
a time: each block is an epoch of its own, begun before the clock.

With `--slow 8` the last worker is 8 x slow in every pass, and codedgrad is compared
with itself without a straggler. `--pieces` adds other numbers of pieces of a late shard
than the default, which divides it among the others so that nobody takes two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from harness import COMM, arguments, say, start_torch, summary, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH, SAMPLE_S = 32, 0.002
WARM_UP = 5  # steps of each block before the clock


class Costly(Dataset[Any]):
    """Samples of one size that take time to read."""

    def __init__(self, kind: str, size: int) -> None:
        """Take the kind, "free", "sleep" or "compute", and the number of samples."""
        self._kind, self._size = kind, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a sample, after 2 ms unless it is free."""
        if self._kind == "sleep":
            time.sleep(SAMPLE_S)
        elif self._kind == "compute":
            end = time.thread_time() + SAMPLE_S
            while time.thread_time() < end:
                pass
        return torch.full((64,), index / self._size), index % 10


class Task:
    """One model with its optimizer."""

    def __init__(self, pass_s: float) -> None:
        """Make the model; a pass over a worker's samples sleeps for `pass_s`."""
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self._sample_s = pass_s * COMM.size / BATCH

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of some samples."""
        if self._sample_s:
            time.sleep(self._sample_s * len(x))
        return nn.functional.cross_entropy(model(x), y)

    def update(self) -> None:
        """Do what follows a backward."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def coded(
    task: Task, data: Any, loaders: int, faults: str = "", pieces: int = 0
) -> Callable[[], Iterator[None]]:
    """Return a function that makes steps of codedgrad, one epoch."""
    code = codedgrad.codes.spread(COMM.size, micro=pieces) if pieces else None
    gradient = codedgrad.CodedGradient(task.model, code, faults=faults)

    def steps() -> Iterator[None]:
        sampler = codedgrad.ShardSampler(data, BATCH, num_workers=loaders)
        for shards in gradient.steps(sampler):
            gradient.backward(lambda x, y: task.loss(task.model, x, y), shards)
            task.update()
            yield

    return steps


def ddp(task: Task, data: Any, loaders: int) -> Callable[[], Iterator[None]]:
    """Return a function that makes steps of DDP with a DataLoader, one epoch."""
    wrapped = nn.parallel.DistributedDataParallel(task.model)

    def steps() -> Iterator[None]:
        sampler: Any = DistributedSampler(data, COMM.size, COMM.rank)
        loader = DataLoader(
            data, BATCH // COMM.size, sampler=sampler, num_workers=loaders
        )
        for x, y in loader:
            task.loss(wrapped, x, y).backward()
            task.update()
            yield

    return steps


def block(steps: Callable[[], Iterator[None]], count: int) -> float:
    """Return the slowest worker's seconds per step, over `count` steps."""
    running = steps()
    for _ in range(WARM_UP):
        next(running)
    COMM.Barrier()
    begin = time.perf_counter()
    for _ in range(count):
        next(running)
    spent = time.perf_counter() - begin
    for _ in running:  # the epoch's rest, so that all workers end it together
        pass
    return max(COMM.allgather(spent)) / count


def measure(
    kind: str, methods: dict[str, Callable[[], Iterator[None]]], rounds: int, count: int
) -> dict[str, Any]:
    """Return a row for every method, with its times over those of the first one.

    `count` is the number of steps of a block.
    """
    names = list(methods)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(block(methods[name], count))
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for name, row in rows.items():
        pairs = zip(seconds[name], seconds[names[0]], strict=True)
        row[f"over_{names[0]}"] = round(statistics.median(a / b for a, b in pairs), 3)
    shown = "  ".join(
        f"{name} {row['median_ms']:.1f} ms ({row[f'over_{names[0]}']:.2f})"
        for name, row in rows.items()
    )
    say(f"{kind}, {COMM.size} workers: {shown}")
    return rows


def methods_of(
    args: argparse.Namespace, data: Any
) -> dict[str, Callable[[], Iterator[None]]]:
    """Return what is compared; the first one is what the others are compared with."""
    pass_s, loaders = args.pass_ms / 1e3, args.loaders
    ours = coded(Task(pass_s), data, loaders)
    if args.slow > 1.0:
        faults = f"slow:worker={COMM.size - 1},factor={args.slow}"
        compared = {"calm": ours, "slow": coded(Task(pass_s), data, loaders, faults)}
        for pieces in map(int, args.pieces.split(",") if args.pieces else ()):
            other = coded(Task(pass_s), data, loaders, faults, pieces)
            compared[f"slow_{pieces}_pieces"] = other
        return compared
    return {
        "ddp_gloo": ddp(Task(pass_s), data, loaders),
        "codedgrad": ours,
        "codedgrad_in_the_pass": coded(Task(pass_s), data, 0),
    }


def main() -> None:
    """Measure the three kinds of samples."""
    parser = arguments(str(__doc__))
    parser.add_argument("--loaders", type=int, default=2, help="of each worker")
    parser.add_argument("--pass-ms", type=float, default=20.0)
    parser.add_argument("--kinds", default="free,sleep,compute")
    parser.add_argument(
        "--slow", type=float, default=1.0, help="the last worker's factor"
    )
    parser.add_argument("--pieces", default="", help='of a late shard, e.g. "4,6"')
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    start_torch(torch.device("cpu"))
    results: dict[str, Any] = {"pass_ms": args.pass_ms, "loaders": args.loaders}
    results |= {"slow": args.slow, "pieces": codedgrad.codes.usual_pieces(COMM.size)}
    rounds, count = (2, 4) if args.toy else (args.rounds, 40)
    for kind in args.kinds.split(","):
        data = Costly(kind, BATCH * (WARM_UP + count + 2))
        results[kind] = measure(kind, methods_of(args, data), rounds, count)
    write(args.out, "bench_data", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
