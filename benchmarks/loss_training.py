"""The training runs of bench_time_to_loss."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loss_arrivals import WINDOW, Timeline, timeline
from loss_tasks import TASKS, WORKERS, Task
from owner import Owner

from codedgrad import ShardSampler
from codedgrad.lab.decoders import evaluate
from codedgrad.lab.decoders.arrivals import Arrivals, tiles_of
from codedgrad.lab.decoders.base import FixedDecoder, apply
from codedgrad.lab.decoders.gram import span_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY = 10  # steps between two losses


@dataclass(frozen=True)
class Cell:
    """One entry of the grid; "exact" is one run for all methods of the same bits."""

    task: str
    partition: str
    scenario: str
    method: str

    @property
    def key(self) -> str:
        """Name of the cell in the results."""
        return " | ".join((self.task, self.partition, self.scenario, self.method))


def decode_fixed(
    owner: Owner, step: int, rows: np.ndarray, arrived: np.ndarray
) -> np.ndarray:
    """Return a fixed decoder's gradient, and remember what arrived.

    The decoder learns nothing, so no inner products are needed.
    """
    memory = owner.memory
    arrivals = Arrivals.of(rows, arrived.astype(float))
    out = arrivals.total()
    if arrivals.missing > 0.0:
        alpha = arrivals.fraction
        v = span_weights(alpha, 1.0 - alpha, arrivals.weight, memory.seen > 0)
        tiles = _Tiles(len(memory.bounds) - 1)
        c = owner.decoder.coefficients(tiles)  # type: ignore[arg-type]
        out = apply(arrivals, memory, v, c, rho=arrivals.missing)
    for j in np.flatnonzero(arrived).tolist():
        memory.shard(j, step, rows[j])
    memory.result(out)
    return np.asarray(out)


class _Tiles:
    """A problem as far as a fixed decoder needs it: its number of tiles."""

    def __init__(self, tiles: int) -> None:
        self.gram = range(tiles)


@dataclass
class Decoding:
    """An inexact method: it decodes each step from the rows that are in time.

    Attributes:
        owner: what is remembered, and the decoder.
        line: who is in time, and when late rows come.
        rows: by step, the rows of which some may still come.
    """

    owner: Owner
    line: Timeline
    rows: dict[int, np.ndarray] = field(default_factory=dict)

    def decode(self, step: int, grads: np.ndarray) -> np.ndarray:
        """Return the step's gradient from all rows [n, D], of which some are late."""
        arrived = self.line.arrived[step]
        self.rows[step] = grads
        for worker, old in self.line.late.get(step, []):
            self.owner.late(old, worker, self.rows[old][worker])
        for old in [o for o in self.rows if o < step and not self._awaited(o, step)]:
            self.owner.close(old)
            del self.rows[old]
        rows = np.where(arrived[:, None], grads, 0.0)
        if isinstance(self.owner.decoder, FixedDecoder):
            return decode_fixed(self.owner, step, rows, arrived)
        look = self.owner.look(rows, arrived.astype(float))
        self.owner.take(step, look)
        return look.gradient

    def _awaited(self, old: int, step: int) -> bool:
        """Return whether a row of step `old` comes after the begin of `step`."""
        ahead = range(step + 1, old + WINDOW)
        late = self.line.late
        return any(origin == old for s in ahead for _, origin in late.get(s, []))


def train(
    task: Task, cell: Cell, line: Timeline, *, steps: int, seed: int
) -> dict[str, Any]:
    """Train once; return the losses at every EVERY-th step and the final accuracy."""
    x, y = task.train
    flat = task.begin(seed)
    velocity = torch.zeros_like(flat)
    gradients = torch.func.vmap(torch.func.grad(task.loss), in_dims=(None, 0, 0))
    decoding = None
    if cell.method != "exact":
        bounds = tiles_of([math.prod(s) for s in task.shapes])
        decoders = {d.name: d for d in evaluate.decoders(len(bounds) - 1)}
        owner = Owner(WORKERS, bounds, decoders[cell.method], seed)
        decoding = Decoding(owner, line)
    losses = []
    batches = _forever(_sampler(task, cell.partition, seed))
    for t in range(steps):
        if t % EVERY == 0:
            losses.append(float(task.loss(flat, x, y)))
        samples = np.stack(next(batches))
        grads = gradients(flat, x[samples], y[samples]).double().numpy()
        g = grads.mean(axis=0) if decoding is None else decoding.decode(t, grads)
        velocity = task.training.momentum * velocity + torch.from_numpy(g).float()
        flat = flat - task.training.lr * velocity
        if not torch.isfinite(flat).all():
            break
    losses.append(float(task.loss(flat, x, y)))
    losses += [math.inf] * (steps // EVERY + 1 - len(losses))
    accuracy = math.nan if task.right is None else float(task.right(flat, *task.test))
    return {"loss": losses, "accuracy": accuracy}


def _sampler(task: Task, partition: str, seed: int) -> ShardSampler:
    settings: dict[str, Any] = {"seed": seed, "drop_last": True}
    if partition != "fresh IID":
        settings["partition"] = "fixed"
        settings["by"] = task.source if partition == "non-IID" else None
    return ShardSampler(task.train, task.training.batch, **settings)


def _forever(sampler: ShardSampler) -> Iterator[list[np.ndarray]]:
    """Yield the samples of every shard, step after step and epoch after epoch."""
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        for step in sampler.steps(WORKERS, WORKERS):
            yield [step.indices(j) for j in range(WORKERS)]


def measure(cell: Cell, steps: int, seeds: int, folder: Path | None) -> dict[str, Any]:
    """Train with every seed of a cell."""
    task = TASKS[cell.task]()
    scenario = "1 of 8, random" if cell.scenario == "any" else cell.scenario
    runs = []
    for seed in range(seeds):
        line = timeline(scenario, steps, seed, folder)
        runs.append(train(task, cell, line, steps=steps, seed=seed))
    return {
        "loss": [[round(v, 5) for v in r["loss"]] for r in runs],
        "accuracy": [round(r["accuracy"], 5) for r in runs],
    }
