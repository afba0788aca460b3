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
from step_methods import MICRO, Alone, Coded, Ddp, in_turns
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = 8  # of a worker


class Bottleneck(nn.Module):
    """A residual block of ResNet-50."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        """Make a block from `inside` to `outside` channels."""
        super().__init__()
        narrow = outside // 4
        self.path = nn.Sequential(
            nn.Conv2d(inside, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.skip = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False),
                nn.BatchNorm2d(outside),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.path(x) + self.skip(x))


def resnet() -> nn.Module:
    """Return a model of ResNet-50's shape, for images of 8 x 8."""
    width = 4
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        outside = 16 * 2**stage
        for index in range(blocks):
            layers.append(Bottleneck(width, outside, 1 + (index == 0 and stage > 0)))
            width = outside
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


class Gpt(nn.Module):
    """A model of GPT-2's shape, for sequences of 8 tokens."""

    def __init__(self, width: int = 16, depth: int = 12) -> None:
        """Make `depth` blocks."""
        super().__init__()
        self.tokens = nn.Embedding(64, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 4 * width, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [samples, tokens, 64]."""
        h = self.tokens(x)
        for layer in self.blocks:
            h = layer(h)
        out: Tensor = self.head(self.norm(h))
        return out


class Job:
    """One model with its data; see `jobs.Job`."""

    pass_s = 0.0

    def __init__(self, task: str) -> None:
        """Make the model `resnet` or `gpt` and random data."""
        torch.manual_seed(0)
        count = SAMPLES * COMM.size
        if task == "resnet":
            self.model = resnet()
            data = torch.randn(count, 3, 8, 8), torch.randint(0, 10, (count,))
        else:
            self.model = Gpt()
            tokens = torch.randint(0, 64, (count, 8))
            data = tokens, tokens
        self.sampler = codedgrad.ShardSampler(TensorDataset(*data), count)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, foreach=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of some samples."""
        out = self.model(x)
        if out.dim() == 3:
            out, y = out.flatten(0, 1), y.flatten()
        return nn.functional.cross_entropy(out, y)

    def endless(self, parts: int) -> Iterator[Any]:
        """Yield steps, epoch after epoch."""
        epoch = 0
        while True:
            self.sampler.set_epoch(epoch)
            yield from self.sampler.steps(parts)
            epoch += 1


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


def measure(task: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return a row for every method: its times, and over those of the others."""
    seconds = in_turns(methods(task), rounds, steps)
    rows: dict[str, Any] = {name: summary(s) for name, s in seconds.items()}
    for name, row in rows.items():
        for other in ("no_exchange", "ddp_gloo"):
            ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
            row[f"over_{other}"] = round(statistics.median(ratios), 3)
    return rows


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
