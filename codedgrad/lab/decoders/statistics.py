"""What the learned decoder has learned in a job: normal equations and recent errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codedgrad.lab.decoders import network
from codedgrad.lab.decoders.candidates import K, LeastSquares, energy
from codedgrad.lab.decoders.gram import Label, Problem, squared_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_SLOW, _FAST = 0.97, 0.8  # what each label keeps of the older errors


class Statistics:
    """Recent errors of every candidate, per tile, as features of a step.

    Errors are |x - V c|^2 / s, with s the step's energy, in two geometric averages.
    """

    def __init__(self, tiles: int) -> None:
        """Begin without labels."""
        self.squares = LeastSquares(tiles)
        self.errors = np.zeros((2, tiles, K))
        self.weight = np.zeros(2)

    @property
    def labels(self) -> int:
        """Number of labels that were learned."""
        return self.squares.labels

    def learn(self, problem: Problem, candidates: Array, label: Label) -> None:
        """Learn the label of a step whose candidates were these [T, K, P]."""
        s = energy(problem)
        if s <= 0.0:
            return
        error = squared_error(
            candidates,
            problem.gram[:, None],
            label.target[:, None],
            label.norm[:, None],
        )
        error = error / s
        for i, keep in enumerate((_SLOW, _FAST)):
            self.errors[i] = keep * self.errors[i] + error
            self.weight[i] = keep * self.weight[i] + 1.0
        self.squares.learn(problem, label)

    def features(self, problem: Problem, candidates: Array) -> tuple[Array, Array]:
        """Return F [T, K, FEATURES] and the context [T, CONTEXT] for the network."""
        left = squared_error(
            candidates,
            problem.left_gram[:, None],
            problem.left_target[:, None],
            problem.left_norm[:, None],
        ) / (energy(problem) or 1.0)
        tables = []
        for i in range(2):
            tables.append(self.errors[i] / max(self.weight[i], 1.0))
        tables.append(left)
        columns = []
        for known, table in zip(
            (self.labels, self.labels, problem.left_count), tables, strict=True
        ):
            for pooled in (False, True):
                e = table.sum(axis=0, keepdims=True) if pooled else table
                f = network.relative(e) if known else np.zeros_like(e)
                columns.append(np.broadcast_to(f, table.shape))
        return np.stack(columns, axis=-1), self._context(problem)

    def _context(self, problem: Problem) -> Array:
        n, left = self.labels, problem.left_count
        same = [
            1.0 / (1.0 + n),
            np.log1p(min(n, 200)) / 5.0,
            np.log(problem.count + 1e-9 if problem.count else 1.0),
            np.log(problem.shards) / 4.0,
            problem.rho,
            np.log1p(problem.staleness) / 3.0,
            problem.known,
            problem.partial,
            1.0 / (1.0 + left),
        ]
        g = problem.gram
        d = np.sqrt(np.einsum("tii->ti", g)) + 1e-150

        def cosine(i: int, j: int) -> Array:
            return np.asarray(g[:, i, j] / d[:, i] / d[:, j])

        ratio = np.log((problem.left_norm + 1e-300) / (g[:, 0, 0] + 1e-300))
        own = [
            cosine(0, 2),
            cosine(3, 4),
            cosine(5, 6),
            np.clip(ratio, -4.0, 6.0) / 4.0 if left else np.zeros(len(g)),
        ]
        out = np.empty((len(g), network.CONTEXT))
        out[:, : len(same)] = same
        out[:, len(same) :] = np.stack(own, axis=1)
        return out
