"""The span of a decoder and its Gram matrices, tile by tile.

With rho the missing share, the estimate of the batch's mean gradient is

    g^ = R + rho sum_i c_i v_i

over the span v (SPAN). All decoders are choices of c. They see nothing of the vectors
but inner products, so nothing depends on scale, rotation or the model's size. The v_i
are normalised so that a good estimate of the missing mean x (the mean of what has not
arrived) has weights that sum to about 1.

Of shard j, h_j is the last known gradient, w_j the share of the batch, alpha_j the
share that has arrived, and delta_j the share that is missing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codedgrad.lab.decoders.arrivals import Arrivals, Memory

Array = NDArray[np.float64]

SPAN = (
    "arrived",  # A = R / (1 - rho)
    "previous",  # the last decoded gradient
    "average",  # the running average of decoded gradients
    "last_missing",  # sum_j delta_j w_j h_j / rho; see also span_weights
    "last_arrived",  # sum_j alpha_j w_j h_j / (1 - rho)
    "mean_missing",  # as the last two, of the shards' running means
    "mean_arrived",
    "partial",  # sum_j alpha_j w_j (h_j - rows_j) / rho over partly arrived shards
)
P = len(SPAN)


@dataclass(frozen=True)
class Problem:
    """One step in inner products, for T tiles, P span vectors and L left-out shards.

    Attributes:
        gram: [T, P, P], <v_i, v_j>.
        total: [T, P + 1], <R, v_i>, and <R, R> at the end.
        rho: the missing share.
        count: number of shards of which something is missing.
        shards: k.
        staleness: mean age in steps of the missing shards' memory; 0 if none is
            missing.
        known: share of the missing that is remembered.
        whole: share of the batch of the shards of which something is missing, at least
            rho.
        partial: share of the missing that belongs to shards of which a part arrived.
        left_gram: [T, P, P], the mean over arrived shards j of the Gram matrix of the
            span if j alone had not arrived.
        left_target: [T, P], the same mean of <rows_j, v_i>.
        left_norm: [T], the same mean of <rows_j, rows_j>.
        left_count: L, number of shards that are left out in turn.
    """

    gram: Array
    total: Array
    rho: float
    count: int
    shards: int
    staleness: float
    known: float
    whole: float
    partial: float
    left_gram: Array
    left_target: Array
    left_norm: Array
    left_count: int


@dataclass(frozen=True)
class Label:
    """Inner products of the missing mean x, once it is known.

    Attributes:
        target: [T, P], <x, v_i>.
        norm: [T], <x, x>.
        cross: [T], <x, R>.
    """

    target: Array
    norm: Array
    cross: Array


def vectors(arrivals: Arrivals, memory: Memory) -> Array:
    """Return U [3 k + 2, D]: the rows, h, e, previous and average.

    Rows of which nothing arrived are 0.
    """
    there = (arrivals.fraction > 0.0)[:, None]
    return np.concatenate(
        [
            np.where(there, arrivals.rows, 0.0).astype(np.float64),
            memory.last,
            memory.mean,
            memory.previous[None],
            memory.average[None],
        ]
    )


def tiled(a: Array, b: Array, bounds: NDArray[np.int64]) -> Array:
    """Return the inner products [T, len(a), len(b)] of rows of a and b, by tile."""
    return np.stack([a[:, i:j] @ b[:, i:j].T for i, j in itertools.pairwise(bounds)])


def solid(alpha: Array) -> Array:
    """Return [k]: 1 for complete shards, else 0; if none is complete, `alpha`."""
    complete = alpha >= 1.0
    return complete.astype(np.float64) if complete.any() else alpha


def span_weights(
    alpha: Array, delta: Array, weight: Array, seen: NDArray[np.bool_]
) -> Array:
    """Return the span as combinations of U, [3 k + 2, P].

    Args:
        alpha: [k], arrived share of each shard.
        delta: [k], missing share; in a left-out problem the two do not add up to 1.
        weight: [k], share of the batch.
        seen: [k], whether the shard is remembered; where it is not, A stands for it.

    Only complete shards are in the means over the arrived. What has arrived of the
    others is in R, and what is missing of them is estimated like a whole missing shard,
    with the same error but for the smaller share. With weight 1 for "partial" the
    estimate is instead what memory knows of the whole less what has arrived. If no
    shard is complete the parts stand for their shards.
    """
    k = len(alpha)
    arrived_share = alpha * weight
    alpha = solid(alpha)
    delta = np.where(alpha >= 1.0, 0.0, delta)
    v = np.zeros((3 * k + 2, P))
    a, d = alpha * weight, delta * weight
    arrived, missing = a.sum(), d.sum()
    if arrived > 0.0:
        v[:k, 0] = a / arrived
    v[3 * k, 1] = v[3 * k + 1, 2] = 1.0
    for i, first in ((3, k), (5, 2 * k)):
        if missing > 0.0:
            v[first : first + k, i] = np.where(seen, d, 0.0) / missing
            v[:, i] += v[:, 0] * (d[~seen].sum() / missing)
        known = a[seen].sum()
        if known > 0.0:
            v[first : first + k, i + 1] = np.where(seen, a, 0.0) / known
        else:
            v[:, i + 1] = v[:, 0]
    partly = (alpha == 0.0) & (arrived_share > 0.0) & (delta > 0.0)
    for j in np.flatnonzero(partly & seen):
        v[k + j, 7] = arrived_share[j] / missing
        v[j, 7] = -arrived_share[j] / missing
    part = (alpha > 0.0) & (delta > 0.0)
    for j in np.flatnonzero(part & seen):
        v[k + j, 3] += a[j] / missing
        v[j, 3] -= a[j] / missing
    if part.any():
        v[:k, 7] = np.where(part, d, 0.0) / missing
        v[:, 7] -= v[:, 0] * (d[part].sum() / missing)
    return v


def problem(arrivals: Arrivals, memory: Memory) -> tuple[Problem, Array]:
    """Return the step's inner products, and the span's weights over `vectors`."""
    u = vectors(arrivals, memory)
    base = tiled(u, u, memory.bounds)
    alpha, weight = arrivals.fraction, arrivals.weight
    delta = 1.0 - alpha
    seen = memory.seen > 0
    v = span_weights(alpha, delta, weight, seen)
    r = np.zeros(len(u))
    r[: len(alpha)] = alpha * weight
    total = np.concatenate([base @ r @ v, (base @ r @ r)[:, None]], axis=1)
    lost = delta * weight
    rho = float(lost.sum())
    age = np.where(seen, memory.decoded - memory.step, 0)
    left = _leave_one_out(base, solid(alpha), weight, seen)
    return (
        Problem(
            gram=v.T @ (base @ v),
            total=total,
            rho=rho,
            count=int((delta > 0.0).sum()),
            shards=len(alpha),
            staleness=float(lost @ age / rho) if rho > 0.0 else 0.0,
            known=float(lost[seen].sum() / rho) if rho > 0.0 else 1.0,
            whole=float(weight[delta > 0.0].sum()),
            partial=float(lost[alpha > 0.0].sum() / rho) if rho > 0.0 else 0.0,
            left_gram=left[0],
            left_target=left[1],
            left_norm=left[2],
            left_count=left[3],
        ),
        v,
    )


def _leave_one_out(
    base: Array, alpha: Array, weight: Array, seen: NDArray[np.bool_]
) -> tuple[Array, Array, Array, int]:
    """Return the means of the problems in which one arrived shard alone is missing.

    They are labels that are known in the step itself.

    Returns:
        Gram matrices [T, P, P], targets [T, P], norms [T], and the number of problems.
    """
    k, t = len(alpha), len(base)
    gram, target, norm = np.zeros((t, P, P)), np.zeros((t, P)), np.zeros(t)
    left = 0
    for j in np.flatnonzero(alpha > 0.0):
        others = alpha.copy()
        others[j] = 0.0
        if not others.any():
            continue
        delta = np.zeros(k)
        delta[j] = 1.0
        v = span_weights(others, delta, weight, seen)
        bv = base @ v
        gram += v.T @ bv
        target += bv[:, j]
        norm += base[:, j, j]
        left += 1
    scale = 1.0 / max(1, left)
    return gram * scale, target * scale, norm * scale, left


def without(problem: Problem, keep: Array) -> Problem:
    """Return the problem with only those vectors of the span where keep [P] is 1."""
    square = keep[:, None] * keep
    return replace(
        problem,
        gram=problem.gram * square,
        total=problem.total * np.append(keep, 1.0),
        left_gram=problem.left_gram * square,
        left_target=problem.left_target * keep,
    )


def label(
    u: Array, v: Array, x: Array, total: Array, bounds: NDArray[np.int64]
) -> Label:
    """Return the label that late rows give for a step.

    Args:
        u: [B, D], `vectors` of the step as they were, or views of fewer elements.
        v: [B, P], the span's weights, from `problem`.
        x: [D], the missing mean.
        total: R [D], the total of the arrivals.
        bounds: [T + 1], where the tiles begin and end.
    """
    xs = x[None].astype(np.float64)
    return Label(
        tiled(xs, u, bounds)[:, 0] @ v,
        tiled(xs, xs, bounds)[:, 0, 0],
        tiled(xs, total[None].astype(np.float64), bounds)[:, 0, 0],
    )


def squared_error(c: Any, gram: Array, target: Array, norm: Array) -> Array:
    """Return |x - sum_i c_i v_i|^2 >= 0 [...], for c [..., P] and gram [..., P, P]."""
    c = np.asarray(c)
    quad = (np.matmul(gram, c[..., None])[..., 0] * c).sum(-1)
    return np.asarray(np.maximum(norm - 2.0 * (c * target).sum(-1) + quad, 0.0))
