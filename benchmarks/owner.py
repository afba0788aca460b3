"""An owner that settles, for the benchmarks in virtual time.

The decoder learns from three sources.

1. Late rows: once all rows of a step have come, those that came late are its label.
2. Steps that do not settle: the label is the truth for what the owner saw when it
   first looked.
3. Mirrors: in every step that settles, complete shards are taken away as others were
   missing, and are estimated. They do not stand in for shards whose memory is old,
   because shards that are always in time are easier to estimate.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.lab.decoders.arrivals import Arrivals, Memory
from codedgrad.lab.decoders.base import apply
from codedgrad.lab.decoders.gram import label, problem, vectors
from codedgrad.lab.decoders.learned import Learned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.decoders.base import Decoder
    from codedgrad.lab.decoders.gram import Problem

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """What an owner would decode now.

    Attributes:
        arrivals: what has arrived.
        gradient: the estimate.
        predicted, bound: its predicted error and the bound on it.
        inner: the step's inner products; None where the arrivals cover.
    """

    arrivals: Arrivals
    gradient: Array
    predicted: float
    bound: float
    inner: Problem | None = None


@dataclass
class _Waiting:
    """A settled step of which rows may still come."""

    arrivals: Arrivals
    memory: Memory
    late: dict[int, Array] = field(default_factory=dict)


class Owner:
    """The memory and the decoder of an owner in one run."""

    def __init__(
        self,
        shards: int,
        bounds: NDArray[np.int64],
        decoder: Decoder,
        seed: int = 0,
        mirrors: int = 2,
    ) -> None:
        """Begin without memory.

        Args:
            shards: k.
            bounds: [T + 1], where the tiles begin and end.
            decoder: the decoder that is taught.
            seed: seed of the mirrors.
            mirrors: number of mirrors in every step that settles.
        """
        self._mirrors = mirrors
        self.memory = Memory(shards, bounds)
        self.decoder = decoder
        self._random = np.random.default_rng(seed)
        self._waiting: dict[int, _Waiting] = {}

    def look(self, rows: Array, fraction: Array) -> Look:
        """Decode what has arrived; the owner stays as it is."""
        arrivals = Arrivals.of(rows, fraction)
        if arrivals.missing <= 1e-12:
            return Look(arrivals, np.asarray(arrivals.total()), 0.0, 0.0)
        inner, weights = problem(arrivals, self.memory)
        c = self.decoder.coefficients(inner)
        predicted, bound = self.decoder.predictor.predict(
            inner, c, *self.decoder.mixing()
        )
        gradient = apply(arrivals, self.memory, weights, c, rho=inner.rho)
        return Look(arrivals, np.asarray(gradient), predicted, bound, inner)

    def take(
        self,
        step: int,
        look: Look,
        first: Look | None = None,
    ) -> None:
        """End the step with what was decoded.

        Args:
            step: the step's number.
            look: what is decoded.
            first: the first look, if the step did not settle then.
        """
        arrivals, memory = look.arrivals, self.memory
        complete = arrivals.fraction >= 1.0
        if not complete.all():
            if isinstance(self.decoder, Learned) and look.inner is not None:
                self.decoder.replay(look.inner)
            self._waiting[step] = _Waiting(arrivals, copy.deepcopy(memory))
            for _ in range(self._mirrors):
                self._mirror(arrivals, complete)
        elif first is not None:
            self._teach(first.arrivals, arrivals.rows, memory)
        for j in np.flatnonzero(complete).tolist():
            memory.shard(j, step, arrivals.rows[j])
        memory.result(look.gradient)

    def late(self, step: int, shard: int, row: Array) -> None:
        """Take a late row, which may belong to an old step."""
        self.memory.shard(shard, step, row)
        if step in self._waiting:
            self._waiting[step].late[shard] = row

    def close(self, step: int) -> None:
        """Learn from a step of which no more rows will come."""
        known = self._waiting.pop(step, None)
        if known is None or not known.late:
            return
        before = known.arrivals
        if set(np.flatnonzero(before.fraction < 1.0).tolist()) - set(known.late):
            return
        full = np.array(before.rows)
        for j, row in known.late.items():
            full[j] = row
        self._teach(before, full, known.memory)

    def _mirror(self, arrivals: Arrivals, complete: NDArray[np.bool_]) -> None:
        """Learn from the step as if other shards than the missing ones were missing."""
        there, gone = np.flatnonzero(complete), np.flatnonzero(~complete)
        age = self.memory.decoded - self.memory.step
        gone = gone[age[gone] <= 2.0 * np.median(age[there]) + 1.0]
        if len(there) < 2 or not len(gone):
            return
        gone = self._random.permutation(gone)[: len(there) // 2]
        stand_in = self._random.choice(there, len(gone), replace=False)
        fraction = np.ceil(arrivals.fraction)
        rows = np.array(arrivals.rows)
        fraction[stand_in] = 0.0
        weight = arrivals.weight * arrivals.fraction
        mirrored = Arrivals.of(rows, fraction, weight / weight.sum())
        self._teach(mirrored, arrivals.rows, self.memory)

    def _teach(self, arrivals: Arrivals, full: Array, memory: Memory) -> None:
        """Learn from arrivals whose whole gradients `full` [k, D] are known.

        Shards of weight 0 are left out.
        """
        part = np.flatnonzero(arrivals.weight > 0.0)
        if len(part) < len(arrivals.weight):
            arrivals = Arrivals(
                arrivals.rows[part], arrivals.fraction[part], arrivals.weight[part]
            )
            full, memory = full[part], _of_shards(memory, part)
        inner, weights = problem(arrivals, memory)
        if not 0.0 < inner.rho < 1.0:
            return
        x = (arrivals.weight @ full - arrivals.total()) / inner.rho
        u = vectors(arrivals, memory)
        c = self.decoder.coefficients(inner)
        total = np.asarray(arrivals.total())
        known = label(u, weights, np.asarray(x), total, memory.bounds)
        self.decoder.learn(inner, c, known)


def _of_shards(memory: Memory, part: NDArray[np.int64]) -> Memory:
    """Return the memory of these shards alone."""
    out = copy.copy(memory)
    for name in ("last", "mean", "seen", "step"):
        setattr(out, name, getattr(memory, name)[part])
    return out
