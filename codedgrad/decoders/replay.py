"""Recorded gradients, played back with some of the shards late.

A recording is an .npz archive of `grads` [steps, shards, D] (float16 or float32, each
shard's mean gradient), `tensor_sizes` [tensors] and optionally `population`
[steps, D] (the gradient of a large held-out batch) and `micro` (how many neighbouring
"shards" are micro-batches of one).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.decoders import gram
from codedgrad.decoders.arrivals import Arrivals, Memory, tiles_of
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from codedgrad.decoders.gram import Array, Label, Problem

PATTERNS = ("random", "fixed", "bursty")
_MOVE = 0.1  # chance that a bursty straggler hands over to another, per step
_LEAST_TILE = 256


@dataclass(frozen=True)
class Recording:
    """Gradients of a run.

    Attributes:
        grads: [steps, shards, micro, D].
        sizes: [tensors], summing up to D.
        population: [steps, D] or None.
    """

    grads: NDArray[np.floating[Any]]
    sizes: NDArray[np.int64]
    population: NDArray[np.floating[Any]] | None = None

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Of the tiles."""
        return tiles_of(self.sizes, _LEAST_TILE)


def load(path: str | Path) -> Recording:
    """Read a recording.

    Raises:
        ConfigError: no such file, no such arrays, or shapes that do not fit.
    """
    wanted = "wanted an .npz with `grads` [steps, shards, D] and `tensor_sizes`"
    try:
        with np.load(path, allow_pickle=False) as file:
            grads = file["grads"]
            sizes = np.asarray(file["tensor_sizes"], np.int64)
            population = file.get("population")
            micro = int(file["micro"]) if "micro" in file else 1
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"cannot read {path}: {error}; {wanted}") from None
    if grads.ndim != 3 or grads.dtype.kind != "f" or min(grads.shape) < 1:
        raise ConfigError(f"{path}: grads is {grads.shape} {grads.dtype}; {wanted}")
    steps, shards, count = grads.shape
    if sizes.ndim != 1 or int(sizes.sum()) != count or (sizes < 0).any():
        raise ConfigError(
            f"{path}: tensor_sizes sum up to {int(sizes.sum())}, gradients have {count}"
        )
    if micro < 1 or shards % micro:
        raise ConfigError(f"{path}: {shards} rows are not a multiple of micro={micro}")
    if population is not None and population.shape != (steps, count):
        raise ConfigError(
            f"{path}: population is {population.shape}, wanted {(steps, count)}"
        )
    if not np.isfinite(grads).all():
        raise ConfigError(f"{path}: grads has NaN or Inf; record a run that converges")
    return Recording(grads.reshape(steps, -1, micro, count), sizes, population)


def erasures(
    steps: int, shards: int, missing: int, pattern: str, seed: int = 0
) -> NDArray[np.bool_]:
    """Who has arrived, bool [steps, shards], with `missing` late in every step.

    random: fresh draws; fixed: the same ones always; bursty: each late one hands over
    to another with probability 0.1 per step.

    Raises:
        ConfigError: no such pattern, or not 1 <= missing < shards.
    """
    if pattern not in PATTERNS:
        raise ConfigError(f"no pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    if not 1 <= missing < shards:
        raise ConfigError(
            f"missing must be 1 to {shards - 1} of {shards} shards, got {missing}"
        )
    random = np.random.default_rng(seed)
    arrived = np.ones((steps, shards), bool)
    late = random.choice(shards, missing, replace=False)
    for step in range(steps):
        if pattern == "random":
            late = random.choice(shards, missing, replace=False)
        elif pattern == "bursty":
            for i in np.flatnonzero(random.random(missing) < _MOVE):
                late[i] = random.choice(np.setdiff1d(np.arange(shards), late))
        arrived[step, late] = False
    return arrived


@dataclass(frozen=True)
class Step:
    """One step of a replay.

    Attributes:
        number: of the step.
        arrivals, inner: what the decoders see.
        label: what they will be told later.
        vectors, weights: [B, D] and [B, P], the span (valid until the next step).
        missing: x [D], mean of what is missing.
        truth: [D], the batch's gradient.
    """

    number: int
    arrivals: Arrivals
    inner: Problem
    label: Label
    vectors: Array
    weights: Array
    missing: Array
    truth: Array


def play(
    recording: Recording, arrived: NDArray[np.bool_], delay: int = 1
) -> Iterator[tuple[str, Step]]:
    """Yield ("late", step) for every step whose late rows come, ("step", step) else.

    Args:
        recording: of k shards of m micro-batches.
        arrived: bool [steps, k] or [steps, k, m].
        delay: steps until late rows arrive; 1: before the next step is decoded.
    """
    grads = recording.grads
    steps, k, m, _ = grads.shape
    if arrived.ndim == 2:
        arrived = np.repeat(arrived[:, :, None], m, axis=2)
    memory = Memory(k, recording.bounds)
    waiting: list[tuple[Step, Array]] = []
    for t in range(steps):
        while waiting and waiting[0][0].number + delay <= t:
            late, off = waiting.pop(0)
            for j in np.flatnonzero(~arrived[late.number].all(axis=1)).tolist():
                memory.shard(j, late.number, grads[late.number, j].mean(axis=0))
            memory.corrected(off, t - 1 - late.number)
            yield "late", late
        step = _step(recording, arrived[t], memory, t)
        yield "step", step
        for j in np.flatnonzero(arrived[t].all(axis=1)).tolist():
            memory.shard(j, t, step.arrivals.rows[j])
        # Whatever the decoders made of it: all remember the same.
        rho = step.inner.rho
        guess = step.arrivals.total() / max(1.0 - rho, 1e-9)
        memory.result(guess)
        if rho > 0.0:
            waiting.append((step, step.truth - guess))


def _step(
    recording: Recording, there: NDArray[np.bool_], memory: Memory, t: int
) -> Step:
    grads = recording.grads[t].astype(np.float64)
    count = there.sum(axis=1)
    rows = (grads * there[:, :, None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    arrivals = Arrivals.of(rows, count / there.shape[1])
    inner, weights = gram.problem(arrivals, memory)
    truth = grads.mean(axis=(0, 1))
    x = np.zeros_like(truth)
    if inner.rho > 0.0:
        x = (truth - arrivals.total()) / inner.rho
    u = gram.vectors(arrivals, memory)
    known = gram.label(u, weights, x, memory.bounds)
    return Step(t, arrivals, inner, known, u, weights, x, truth)
