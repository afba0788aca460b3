"""The learned decoder's candidates: fixed coefficients, and many least squares.

Online least squares minimises, per tile,

    sum over past labels of |x - sum_i c_i v_i|^2 / s,

where s is the step's energy, and forgets older labels geometrically. The left-out
problems of a step, in which each arrived shard is predicted from the others, are labels
too, and are known at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.lab.decoders.gram import SPAN, Label, P, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def coefficients(**values: float) -> Array:
    """Return c [P] from values by the span's names; the others are 0."""
    return np.array([values.get(name, 0.0) for name in SPAN])


FIXED: dict[str, Array] = {
    "zero": coefficients(),
    "rescale": coefficients(arrived=1.0),
    "momentum": coefficients(average=1.0),
    "previous": coefficients(previous=1.0),
    "stale": coefficients(last_missing=1.0),
    "saga": coefficients(arrived=1.0, last_missing=1.0, last_arrived=-1.0),
    "stale_mean": coefficients(mean_missing=1.0),
    "saga_mean": coefficients(arrived=1.0, mean_missing=1.0, mean_arrived=-1.0),
    "local": coefficients(arrived=1.0, partial=1.0),
}
FITTED = (
    "online_ls",
    "fast",
    "pooled",
    "replayed",
    "replayed_pooled",
    "left_out",
    "left_out_pooled",
    "joint",
    "joint_fast",
    "joint_pooled",
)
NAMES = (*FIXED, *FITTED)
K = len(NAMES)
_SLOW, _FAST, _LEFT = 0.98, 0.9, 0.9  # what each label keeps of the older ones
_TINY, _SMALL = 1e-6, 1e-2  # ridges, relative to the normalised Gram matrix


def energy(problem: Problem) -> float:
    """Return s >= 0, the squared lengths of the arrived and the running average."""
    return float(np.sum(problem.gram[:, 0, 0] + problem.gram[:, 2, 2]))


def solve(gram: Array, target: Array, ridge: float) -> Array:
    """Return argmin_c c^T G c - 2 c^T b + ridge |D c|^2, with D^2 the diagonal of G.

    Args:
        gram: G [..., P, P], symmetric and positive semidefinite.
        target: b [..., P].
        ridge: a positive number.

    Returns:
        c [..., P]; it is 0 for vectors of length 0.
    """
    d = np.sqrt(np.einsum("...ii->...i", gram))
    inverse = np.where(d > 1e-150, 1.0 / np.maximum(d, 1e-150), 0.0)
    scaled = gram * inverse[..., :, None] * inverse[..., None, :]
    scaled = scaled + ridge * np.eye(gram.shape[-1])
    y = np.linalg.solve(scaled, (target * inverse)[..., None])[..., 0]
    return np.asarray(y * inverse)


class LeastSquares:
    """The normal equations of past labels, per tile, in three geometric averages."""

    def __init__(self, tiles: int) -> None:
        """Begin without labels."""
        self.gram = np.zeros((3, tiles, P, P))  # slow, fast, left-out
        self.target = np.zeros((3, tiles, P))
        self.labels = 0
        self.replays = 0

    def learn(self, problem: Problem, label: Label) -> None:
        """Add one label; a step without energy teaches nothing."""
        s = energy(problem)
        if s <= 0.0:
            return
        scale = 1.0 / s
        for i, keep in enumerate((_SLOW, _FAST)):
            self._add(i, keep, scale, problem.gram, label.target)
        self.labels += 1

    def replay(self, problem: Problem) -> None:
        """Add a step's left-out problems; this is called after the step."""
        s = energy(problem)
        if problem.left_count and s > 0.0:
            scale = 1.0 / s
            self._add(2, _LEFT, scale, problem.left_gram, problem.left_target)
            self.replays += 1

    def _add(self, i: int, keep: float, scale: float, gram: Any, target: Any) -> None:
        self.gram[i] = keep * self.gram[i] + scale * gram
        self.target[i] = keep * self.target[i] + scale * target

    def online(self, problem: Problem) -> Array:
        """Return c [T, P] of "online_ls" alone."""
        if not self.labels:
            return np.broadcast_to(FIXED["rescale"], problem.left_target.shape)
        return solve(self.gram[0], self.target[0], _TINY)

    def candidates(self, problem: Problem) -> Array:
        """Return c [T, K, P] in the order of NAMES, for a step before its label."""
        tiles = len(problem.gram)
        out = np.empty((tiles, K, P))
        out[:, : len(FIXED)] = np.array(list(FIXED.values()))
        s = energy(problem)
        scale = 0.5 / s if s > 0.0 else 0.0
        now = (scale * problem.left_gram, scale * problem.left_target)
        slow, fast, left = zip(self.gram, self.target, strict=True)
        past = (left[0] + now[0], left[1] + now[1])
        fitted = (
            (slow, _TINY, False, self.labels),
            (fast, _SMALL, False, self.labels),
            (slow, 1e-3, True, self.labels),
            (past, _SMALL, False, problem.left_count),
            (past, 1e-3, True, problem.left_count),
            (now, _SMALL, False, problem.left_count),
            (now, _SMALL, True, problem.left_count),
            ((slow[0] + now[0], slow[1] + now[1]), 1e-4, False, 1),
            ((fast[0] + now[0], fast[1] + now[1]), 1e-3, False, 1),
            ((slow[0] + now[0], slow[1] + now[1]), 1e-4, True, 1),
        )
        for i, ((gram, target), ridge, pooled, known) in enumerate(fitted, len(FIXED)):
            if not known:
                out[:, i] = FIXED["rescale"]
            elif pooled:
                out[:, i] = solve(gram.sum(0), target.sum(0), ridge)
            else:
                out[:, i] = solve(gram, target, ridge)
        return out
