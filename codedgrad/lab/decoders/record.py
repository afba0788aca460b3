"""Record the gradients of a real run, on which decoders are fitted and judged.

One process plays all shards of a synchronous run. The gradients of all shards are kept
in every step, and their mean is applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from codedgrad.lab.decoders.tasks import Task

PARTITIONS = ("fresh", "fixed", "classes", "full")
_HELD_OUT = 512  # samples at most of the population's gradient


@dataclass(frozen=True)
class Run:
    """How a task is trained and recorded.

    Attributes:
        partition: "fresh" (a global shuffle), "fixed" (a shard always draws from its
            own part of the shuffled data), "classes" (the same, with parts cut in the
            order of the classes: non-IID) or "full" (a shard has all of its fixed part
            in every step).
        shards: k.
        steps: steps of the run.
        batch: samples of a shard in a step; not used with "full".
        micro: micro-batches of a shard, which are recorded one by one.
        seed: seed of what is drawn.
        adam: True for AdamW instead of SGD with momentum 0.9.
        lr: learning rate; None is the task's, or 3e-3 with AdamW.
        population: True to record the gradient of a larger held-out batch too.
    """

    partition: str
    shards: int = 8
    steps: int = 300
    batch: int = 32
    micro: int = 1
    seed: int = 0
    adam: bool = False
    lr: float | None = None
    population: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.partition not in PARTITIONS:
            names = ", ".join(PARTITIONS)
            raise ConfigError(f"no partition {self.partition!r}; there are {names}")
        for name in ("shards", "steps", "micro"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.partition != "full" and self.batch < self.micro:
            raise ConfigError(
                f"a batch of {self.batch} samples does not make {self.micro} "
                "micro-batches"
            )


def record(task: Task, run: Run) -> dict[str, Any]:
    """Train a task's model and keep every shard's gradient.

    Returns:
        The arrays of a recording (see codedgrad.lab.decoders.replay).

    Raises:
        ConfigError: there are too few samples, or a gradient is not finite.
    """
    random = np.random.default_rng(run.seed)
    torch.manual_seed(run.seed)
    held_out, order = _divide(task, run, random)
    draw = _drawing(run, order, random)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    optimizer = _optimizer(task, run, parameters)
    sizes = [p.numel() for p in parameters]
    grads = np.empty((run.steps, run.shards * run.micro, sum(sizes)), np.float32)
    truth = np.empty((run.steps, sum(sizes)), np.float32)
    for step in range(run.steps):
        pieces = [piece for d in draw() for piece in np.array_split(d, run.micro)]
        for i, piece in enumerate(pieces):
            grads[step, i] = _gradient(task, parameters, piece)
        if run.population:
            truth[step] = _gradient(task, parameters, held_out)
        if not np.isfinite(grads[step]).all():
            raise ConfigError(
                f"step {step}: a gradient with NaN or Inf; record a run that "
                "converges, e.g. with a smaller learning rate"
            )
        mean = torch.from_numpy(grads[step].mean(axis=0))
        for p, g in zip(parameters, mean.split(sizes), strict=True):
            p.grad = g.view_as(p).clone()
        optimizer.step()
    arrays = {"grads": grads, "tensor_sizes": np.asarray(sizes), "micro": run.micro}
    return {**arrays, "population": truth} if run.population else arrays


def halve(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return a recording with its gradients as float16.

    Raises:
        ConfigError: a gradient overflows (above 65504), or is so small that more than
            0.1 % of a step's squared length would be lost.
    """
    out = dict(arrays)
    for name in ("grads", "population"):
        if name not in arrays:
            continue
        with np.errstate(over="ignore", under="ignore"):
            half = arrays[name].astype(np.float16)
        if not np.isfinite(half).all():
            raise ConfigError(f"{name}: values above 65504 overflow; use float32")
        for step, (full, less) in enumerate(zip(arrays[name], half, strict=True)):
            lost = float(((full - less.astype(np.float64)) ** 2).sum())
            if lost > 1e-3 * float((full.astype(np.float64) ** 2).sum()):
                raise ConfigError(
                    f"{name}, step {step}: too small for float16; use float32"
                )
        out[name] = half
    return out


def _divide(
    task: Task, run: Run, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the samples that are held out, and the order of the others."""
    order = random.permutation(len(task.x))
    held_out, order = np.split(order, [min(_HELD_OUT, len(order) // 4)])
    least = run.shards * (run.micro if run.partition == "full" else run.batch)
    if len(order) < least:
        raise ConfigError(
            f"{len(order)} samples are fewer than the {least} of one step; record with "
            "fewer shards or a smaller batch"
        )
    if run.partition == "classes":
        order = order[np.argsort(task.classes[order], kind="stable")]
    return held_out, order


def _drawing(
    run: Run, order: NDArray[np.int64], random: np.random.Generator
) -> Callable[[], list[NDArray[np.int64]]]:
    """Return a function that draws the samples of every shard for one step."""
    parts = np.array_split(order, run.shards)
    together = run.shards * run.batch

    def fresh() -> list[NDArray[np.int64]]:
        return np.array_split(random.permutation(order)[:together], run.shards)

    def full() -> list[NDArray[np.int64]]:
        return parts

    def fixed() -> list[NDArray[np.int64]]:
        return [random.permutation(p)[: min(run.batch, len(p))] for p in parts]

    return {"fresh": fresh, "full": full}.get(run.partition, fixed)


def _optimizer(
    task: Task, run: Run, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    if run.adam:
        return torch.optim.AdamW(parameters, lr=run.lr or 3e-3)
    return torch.optim.SGD(parameters, lr=run.lr or task.lr, momentum=0.9)


def _gradient(
    task: Task, parameters: list[nn.Parameter], samples: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean gradient [D] over these samples."""
    index = torch.from_numpy(np.asarray(samples))
    loss = task.loss(task.model(task.x[index]), task.y[index])
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g).flatten()
        for p, g in zip(parameters, found, strict=True)
    ]
    return np.asarray(torch.cat(flat).numpy(), np.float32)
