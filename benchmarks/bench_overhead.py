"""The host's work in a step: models whose kernels take no time, as on a fast GPU.

    mpirun -n 1 python benchmarks/bench_overhead.py --out FILE.json
    mpirun -n 2 python benchmarks/bench_overhead.py --out FILE.json

`resnet` has the modules, parameters and buffers of ResNet-50 and `gpt` those of
GPT-2's smallest model, but so few channels that only calls cost time. What is compared
is what a user would run: one whole pass a step without an exchange (`no_exchange`),
DDP on Gloo, codedgrad's default, and codedgrad with `same_bits=True`, which computes
its micro-batches as passes of their own. The methods take turns, block by block.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from harness import COMM, arguments, say, start_torch, summary, write
from jobs import Job as StepJob
from shapes import Gpt, resnet
from step_methods import MICRO, Alone, Coded, Ddp, in_turns
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = 8  # of a worker, in a step
EPOCH = 16  # steps


class Job:
    """One model with its data; see `jobs.Job`."""

    pass_s = 0.0

    def __init__(self, task: str) -> None:
        """Make the model `resnet` or `gpt` and random data."""
        torch.manual_seed(0)
        batch = SAMPLES * COMM.size
        count = EPOCH * batch
        if task == "resnet":
            self.model = resnet()
            data = torch.randn(count, 3, 8, 8), torch.randint(0, 10, (count,))
        else:
            self.model = Gpt()
            tokens = torch.randint(0, 64, (count, 8))
            data = tokens, tokens
        self.sampler = codedgrad.ShardSampler(TensorDataset(*data), batch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, foreach=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of some samples."""
        out = self.model(x)
        if out.dim() == 3:
            out, y = out.flatten(0, 1), y.flatten()
        return nn.functional.cross_entropy(out, y)

    endless = StepJob.endless


def methods(task: str) -> dict[str, Any]:
    """Return the methods to compare, each with a job of its own."""
    n = COMM.size
    code = codes.spread(n, micro=MICRO) if n > 1 else codes.uncoded(n, micro=MICRO)

    def job() -> Any:
        return Job(task)

    return {
        "codedgrad": Coded(job(), code, same_bits=False),
        "codedgrad_same_bits": Coded(job(), code),
        "ddp_gloo": Ddp(job()),
        "no_exchange": Alone(job()),
        f"no_exchange_{MICRO}_passes": Alone(job(), MICRO),
    }


def over(seconds: dict[str, list[float]], baselines: Sequence[str]) -> dict[str, Any]:
    """Return a row for every method: its times, and over those of the baselines.

    A ratio is the median over the rounds, so what makes a round slow cancels.
    """
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for name, row in rows.items():
        for other in baselines:
            ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
            row[f"over_{other}"] = round(statistics.median(ratios), 3)
    return rows


def measure(task: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return a row for every method: its times, and over those of the others."""
    return over(in_turns(methods(task), rounds, steps), ("no_exchange", "ddp_gloo"))


def main() -> None:
    """Measure both shapes."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    codedgrad.init()
    start_torch(torch.device("cpu"))
    rounds, steps = (2, 2) if args.toy else (15, 5)
    results = {}
    for task in ("resnet", "gpt"):
        results[task] = measure(task, rounds, steps)
        shown = "  ".join(
            f"{m} {r['median_ms']:.1f} ms ({r['over_no_exchange']:.2f})"
            for m, r in results[task].items()
        )
        say(f"{task}, {COMM.size} worker(s): {shown}")
    write(args.out, "bench_overhead", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
