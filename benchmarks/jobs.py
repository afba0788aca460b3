"""The jobs that the step benchmarks train: a model, its data and a loss."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import COMM
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable

PASS_S = 0.05  # seconds of a whole pass of `sleep` over a worker's own samples
LAYERS, LAYER_SIZE, LAYER_S = 10, 1_000_000, 0.016

TASKS = ("sleep", "device", "gpt10m", "digits", "text")


class Job:
    """One model with its data, which a method trains."""

    def __init__(
        self, task: str, batch: int, device: torch.device | str = "cpu"
    ) -> None:
        """Make the model and its data on `device`.

        Args:
            task: one of TASKS.
            batch: samples of a step over all workers.
            device: device of model and data.
        """
        torch.manual_seed(0)
        self.own, self.sleeps = batch // COMM.size, task == "sleep"
        self.last_for(PASS_S)
        self.loss: Callable[..., Tensor] = nn.functional.cross_entropy
        self.data: Any = (torch.randn(512, 64), torch.randint(0, 32, (512,)))
        if task == "sleep":
            self.model: nn.Module = nn.Sequential(
                nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 32)
            )
        elif task == "device":
            layers = [OnDevice(LAYER_SIZE, LAYER_S, self.own) for _ in range(LAYERS)]
            self.model = nn.Sequential(*layers)
            self.loss = lambda out, _: out.mean()
        else:
            sys.path.insert(0, str(Path(__file__).parent.parent / "launch"))
            import models
            import tasks

            job = tasks.make("text" if task == "gpt10m" else task)
            self.model, self.data, self.loss = job.model, job.train, job.loss
            if task == "gpt10m":
                self.model = models.ByteGPT(width=368, depth=6, heads=8)
        self.model.to(device)
        tensors = getattr(self.data, "tensors", self.data)
        self.data = TensorDataset(*(t.to(device) for t in tensors))
        self.sampler = codedgrad.ShardSampler(self.data, batch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def last_for(self, seconds: float) -> None:
        """Make a whole pass of `sleep` take so long from now on."""
        self.pass_s = seconds

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of some samples, in time that is in proportion to them."""
        if self.sleeps:
            time.sleep(self.pass_s * len(x) / self.own)
        return self.loss(self.model(x), y)

    def endless(self, parts: int, shards: int | None = None) -> Any:
        """Yield the sampler's steps of full size, epoch after epoch.

        With `shards` these are as even as possible, and else the parts.
        """
        whole = shards is not None
        epoch = 0
        while True:
            self.sampler.set_epoch(epoch)
            for step in self.sampler.steps(parts, shards, whole=whole):
                if step.total == self.sampler.batch_size:
                    yield step
            epoch += 1


class OnDevice(nn.Module):
    """A layer that computes elsewhere: time passes while the worker's core is free.

    The forward of a whole pass takes `seconds` and the backward twice as long, after
    which the gradient of `size` elements is there.
    """

    def __init__(self, size: int, seconds: float, samples: int) -> None:
        """Make a layer with one vector of `size` parameters.

        Args:
            size: number of parameters.
            seconds: of a forward over `samples`; others take time in proportion.
            samples: of a whole pass.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.seconds, self.samples = seconds, samples

    def forward(self, x: Tensor) -> Tensor:
        """Return the input after its time."""
        seconds = self.seconds * len(x) / self.samples
        out: Tensor = _Elsewhere.apply(x, self.weight, seconds)
        return out


class _Elsewhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seconds: float) -> Tensor:
        time.sleep(seconds)
        ctx.seconds, ctx.size = seconds, weight.shape
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return gradient, torch.full(ctx.size, 1e-6), None
