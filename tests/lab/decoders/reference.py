"""The decoders written out vector by vector, which is slow and obvious."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codedgrad.lab.decoders.gram import SPAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.decoders import Arrivals, Memory

    Array = NDArray[np.float64]


def span(
    arrivals: Arrivals, memory: Memory, alpha: Array, delta: Array
) -> dict[str, Array]:
    """Return every vector [D] of the span by name.

    alpha and delta may be those of a left-out problem.
    """
    k, count = arrivals.rows.shape
    w = arrivals.weight
    arrived_share = alpha
    if any(alpha >= 1.0):  # only complete shards count as arrived
        alpha = np.array([1.0 if share >= 1.0 else 0.0 for share in alpha])
    arrived = sum(alpha[j] * w[j] for j in range(k))
    missing = sum(delta[j] * w[j] for j in range(k))
    zero = np.zeros(count)
    a = zero.copy()
    for j in range(k):
        if alpha[j] > 0.0:
            a += alpha[j] * w[j] * arrivals.rows[j] / arrived
    out = {name: zero.copy() for name in SPAN}
    out["arrived"] = a
    out["previous"] = memory.previous
    out["average"] = memory.average
    for j in range(k):
        if delta[j] == 0.0:
            continue
        share = delta[j] * w[j] / missing
        part = alpha[j] > 0.0
        if memory.seen[j] == 0:
            out["last_missing"] += share * a
            out["mean_missing"] += share * a
        else:
            rest = memory.last[j]
            if part:  # only the rest of the shard is missing
                rest = (rest - alpha[j] * arrivals.rows[j]) / delta[j]
            out["last_missing"] += share * rest
            out["mean_missing"] += share * memory.mean[j]
        if arrived_share[j] > 0.0 and not part and memory.seen[j] > 0:
            rest = memory.last[j] - arrivals.rows[j]
            out["partial"] += arrived_share[j] * w[j] / missing * rest
        if part:
            out["partial"] += share * (arrivals.rows[j] - a)
    known = sum(alpha[j] * w[j] for j in range(k) if memory.seen[j] > 0)
    for name, table in (("last_arrived", memory.last), ("mean_arrived", memory.mean)):
        if known == 0.0:
            out[name] = a
            continue
        for j in range(k):
            if memory.seen[j] > 0:
                out[name] += alpha[j] * w[j] / known * table[j]
    return out


def left_out(arrivals: Arrivals, memory: Memory) -> list[tuple[dict[str, Array], int]]:
    """Return (span, j) for each arrived shard j, with that shard taken away."""
    cases = []
    k = len(arrivals.fraction)
    for j in range(k):
        alpha = arrivals.fraction.copy()
        if any(alpha >= 1.0):
            alpha = np.array([1.0 if share >= 1.0 else 0.0 for share in alpha])
        if alpha[j] == 0.0:
            continue
        alpha[j] = 0.0
        if alpha.sum() == 0.0:
            continue
        delta = np.zeros(k)
        delta[j] = 1.0
        cases.append((span(arrivals, memory, alpha, delta), j))
    return cases


def estimate(name: str, arrivals: Arrivals, memory: Memory) -> Array:
    """Return a named decoder's gradient [D], by the formula of its docstring."""
    alpha, w = arrivals.fraction, arrivals.weight
    k = len(alpha)
    total = sum(alpha[j] * w[j] * arrivals.rows[j] for j in range(k) if alpha[j] > 0.0)
    rho = sum(w[j] * (1.0 - alpha[j]) for j in range(k))
    s = span(arrivals, memory, alpha, 1.0 - alpha)
    fill = {
        "zero": np.zeros_like(total),
        "rescale": s["arrived"],
        "momentum": memory.average,
        "stale": s["last_missing"],
        "saga": s["arrived"] + s["last_missing"] - s["last_arrived"],
    }
    if name != "shrink":
        return np.asarray(total + rho * fill[name])
    out = np.array(total)
    cases = left_out(arrivals, memory)
    for a, b in memory.tiles():
        n = len(cases)
        apart = 0.0
        for case, j in cases:
            off = arrivals.rows[j][a:b] - case["arrived"][a:b]
            apart += float(off @ off) / n
        noise = (1.0 - 1.0 / n) * apart / n
        moved = s["arrived"][a:b] - memory.average[a:b]
        gain = max(0.0, 1.0 - noise / float(moved @ moved))
        mix = gain * s["arrived"][a:b] + (1.0 - gain) * memory.average[a:b]
        out[a:b] += rho * mix
    return out


def weighted_least_squares(
    spans: list[Array], truths: list[Array], keep: float
) -> Array:
    """Return argmin_c sum_i keep^age |x_i - V_i c|^2 / s_i, by stacking everything.

    Args:
        spans: V_i [P, elements], oldest first.
        truths: x_i [elements].
        keep: the factor by which a problem weighs less than the next one.
    """
    rows, right = [], []
    for i, (v, x) in enumerate(zip(spans, truths, strict=True)):
        energy = v[0] @ v[0] + v[2] @ v[2]
        root = np.sqrt(keep ** (len(spans) - 1 - i) / energy)
        rows.append(root * v.T)
        right.append(root * x)
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)
    return np.asarray(found[0])
