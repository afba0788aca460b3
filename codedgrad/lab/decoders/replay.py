"""Recorded gradients, played back with some of the shards late.

A recording is an .npz archive of `grads` [steps, shards, D] (each shard's mean
gradient, float16 or float32) and `tensor_sizes` [tensors]. It may also have
`population` [steps, D] (the gradient of a large held-out batch) and `micro` (how many
neighbouring "shards" are micro-batches of one shard).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders import gram
from codedgrad.lab.decoders.arrivals import Arrivals, Memory, tiles_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from codedgrad.lab.decoders.gram import Array, Label, Problem

PATTERNS = ("random", "fixed", "bursty")
_MOVE = 0.1  # probability that a bursty straggler hands over to another in a step
_LEAST_TILE = 256
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile)
_ARRAYS = ("grads", "tensor_sizes", "population", "micro")
_WANTED = (
    "wanted an .npz archive of `grads` [steps, shards, D], float16 or float32, and "
    "`tensor_sizes` [tensors], integers"
)


@dataclass(frozen=True)
class Recording:
    """Gradients of a run.

    Attributes:
        grads: [steps, shards, micro, D], the mean gradient of every micro-batch.
        sizes: [tensors], elements of each tensor; they sum up to D.
        population: [steps, D], the gradient of a held-out batch, or None.
    """

    grads: NDArray[np.floating[Any]]
    sizes: NDArray[np.int64]
    population: NDArray[np.floating[Any]] | None = None

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Where the tiles begin and end, [T + 1]."""
        return tiles_of(self.sizes, _LEAST_TILE)


def load(path: str | Path) -> Recording:
    """Read a recording.

    Raises:
        ConfigError: there is no such file, or it lacks an array, or shapes do not fit.
    """
    try:
        with Path(path).open("rb") as raw, np.load(raw) as file:
            arrays = {n: file[n] for n in _ARRAYS if n in file.files}
    except _UNREADABLE as error:
        raise ConfigError(f"cannot read {path}: {error}; {_WANTED}") from None
    return of(arrays, str(path))


def of(arrays: dict[str, Any], path: str = "recording") -> Recording:
    """Make a recording from its arrays; `path` is for messages.

    Raises:
        ConfigError: an array is missing or has NaN or Inf, or shapes do not fit.
    """
    missing = [n for n in _ARRAYS[:2] if n not in arrays]
    if missing:
        raise ConfigError(f"{path}: there is no {missing[0]!r} in it; {_WANTED}")
    grads, sizes = np.asarray(arrays["grads"]), np.asarray(arrays["tensor_sizes"])
    if grads.ndim != 3 or grads.dtype.kind != "f" or min(grads.shape) < 1:
        raise ConfigError(f"{path}: grads is {grads.shape} {grads.dtype}; {_WANTED}")
    steps, shards, count = grads.shape
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or (sizes < 0).any():
        raise ConfigError(
            f"{path}: tensor_sizes is {sizes.shape} {sizes.dtype}; {_WANTED}"
        )
    if int(sizes.sum()) != count:
        raise ConfigError(
            f"{path}: tensor_sizes sum up to {int(sizes.sum())}, gradients have {count}"
        )
    micro = int(arrays.get("micro", 1))
    if micro < 1 or shards % micro:
        raise ConfigError(f"{path}: {shards} rows are not a multiple of micro={micro}")
    population = arrays.get("population")
    if population is not None and population.shape != (steps, count):
        raise ConfigError(
            f"{path}: population is {population.shape}, wanted {(steps, count)}"
        )
    for name in ("grads", "population"):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise ConfigError(
                f"{path}: {name} has NaN or Inf; record a run that converges, and in "
                "float32 if float16 overflows"
            )
    grads = grads.reshape(steps, -1, micro, count)
    return Recording(grads, sizes.astype(np.int64), population)


def erasures(
    steps: int, shards: int, missing: int, pattern: str, seed: int = 0
) -> NDArray[np.bool_]:
    """Return who has arrived, bool [steps, shards]; `missing` are late in every step.

    random: the late ones are drawn anew in every step.
    fixed: the same ones are always late.
    bursty: each late one hands over to another with probability 0.1 in a step.

    Raises:
        ConfigError: there is no such pattern, or not 1 <= missing < shards.
    """
    if pattern not in PATTERNS:
        raise ConfigError(f"no pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    if shards < 2:
        raise ConfigError("one shard only: nothing can be estimated without it")
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
        number: the step's number.
        arrivals, inner: what the decoders see.
        label: what they learn later.
        vectors, weights: U [B, D] and [B, P], the span; valid until the next step.
        missing: x [D], the mean of what is missing.
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
    recording: Recording,
    arrived: NDArray[np.bool_],
    delay: int = 1,
    drop: Sequence[str] = (),
) -> Iterator[tuple[str, Step]]:
    """Yield ("step", step) for every step, and ("late", step) when its late rows come.

    Args:
        recording: gradients of k shards of m micro-batches.
        arrived: bool [steps, k] or [steps, k, m].
        delay: steps until late rows arrive; 1 is before the next step is decoded.
        drop: names of gram.SPAN to do without, for ablations.

    Raises:
        ConfigError: `arrived` has another shape, or the delay is below 1.
    """
    grads = recording.grads
    steps, k, m, _ = grads.shape
    if arrived.shape not in ((steps, k), (steps, k, m)):
        raise ConfigError(
            f"arrived is {arrived.shape}, wanted {(steps, k)} or {(steps, k, m)}"
        )
    if delay < 1:
        raise ConfigError(f"delay must be at least 1 step, got {delay}")
    keep = np.array([name not in drop for name in gram.SPAN], np.float64)
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
        step = _step(recording, arrived[t], memory, t, keep)
        yield "step", step
        for j in np.flatnonzero(arrived[t].all(axis=1)).tolist():
            memory.shard(j, t, step.arrivals.rows[j])
        # All decoders remember the same, whatever each of them has estimated.
        rho = step.inner.rho
        guess = step.arrivals.total() / max(1.0 - rho, 1e-9)
        memory.result(guess)
        if rho > 0.0:
            waiting.append((step, step.truth - guess))


def _step(
    recording: Recording, there: NDArray[np.bool_], memory: Memory, t: int, keep: Array
) -> Step:
    grads = recording.grads[t].astype(np.float64)
    count = there.sum(axis=1)
    rows = (grads * there[:, :, None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    arrivals = Arrivals.of(rows, count / there.shape[1])
    inner, weights = gram.problem(arrivals, memory)
    if not keep.all():
        inner, weights = gram.without(inner, keep), weights * keep
    truth = grads.mean(axis=(0, 1))
    x = np.zeros_like(truth)
    if inner.rho > 0.0:
        x = (truth - arrivals.total()) / inner.rho
    u = gram.vectors(arrivals, memory)
    return Step(
        number=t,
        arrivals=arrivals,
        inner=inner,
        label=gram.label(u, weights, x, np.asarray(arrivals.total()), memory.bounds),
        vectors=u,
        weights=weights,
        missing=x,
        truth=truth,
    )
