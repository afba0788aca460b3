"""A model of what an exchange costs: start + messages * alpha + bytes * beta.

It has two shapes. With n workers and a gradient of D bytes a worker sends, one after
another,

    linear       2 (n - 1) messages of 2 (n - 1) / n D bytes together, as codedgrad does
                 in its two hops (a row to its owners, results to all), and a ring too
    logarithmic  2 log2(n) messages of as many bytes, as recursive halving and doubling
                 does (Rabenseifner 2004)

Where k workers share c cores, k / c of them take turns: messages and bytes of a
*crowded* fit count max(1, k / c) times. Fits minimise the squared relative error of the
medians, with no coefficient below 0.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codedgrad.lab.simulate import Comm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Point(NamedTuple):
    """One measured exchange; `crowd` is workers over cores of a machine, at least 1."""

    workers: int
    bytes: float
    seconds: float
    crowd: float = 1.0


# These are stated, not measured: (alpha in s, beta in s per byte).
NETWORKS = {
    "25 GbE": (20e-6, 1 / 3.1e9),
    "InfiniBand 200 Gb/s": (2e-6, 1 / 24e9),
}


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        start_s, alpha_s, beta_s: the coefficients.
        shape: "linear" or "logarithmic".
        crowded: True if messages and bytes count `crowd` times.
        error, worst: root mean square and largest |model / median - 1| of the points.
        held_out: the error, on the points with the most workers, of a fit to the other
            points; None if all have the same number of workers.
    """

    start_s: float
    alpha_s: float
    beta_s: float
    shape: str
    crowded: bool = False
    error: float = 0.0
    worst: float = 0.0
    held_out: float | None = None

    def seconds(self, workers: int, gradient_bytes: float, crowd: float = 1.0) -> float:
        """Return the seconds of one exchange; they are 0 for one worker."""
        if workers < 2:
            return 0.0
        point = Point(workers, gradient_bytes, 1.0, crowd)
        row = columns([point], self.shape, crowded=self.crowded)
        return float(row[0] @ [self.start_s, self.alpha_s, self.beta_s])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


def columns(
    points: Sequence[Point], shape: str, *, crowded: bool
) -> NDArray[np.float64]:
    """Return how often start, alpha and beta count, [points, 3]."""
    rows = []
    for n, size, _, crowd in points:
        times = crowd if crowded else 1.0
        messages = 2 * (n - 1) if shape == "linear" else 2 * math.log2(n)
        rows.append([1.0, times * messages, times * 2 * (n - 1) / n * size])
    return np.array(rows)


def fit(
    points: Sequence[Point], shape: str = "linear", *, crowded: bool = False
) -> Fit:
    """Fit by least squares, and measure the errors of the fit."""
    found = _fit(points, shape, crowded=crowded)
    most = max(p.workers for p in points)
    fewer = [p for p in points if p.workers < most]
    held_out = None
    if len({p.workers for p in fewer}) > 1:
        early = _fit(fewer, shape, crowded=crowded)
        held_out = _errors(early, [p for p in points if p.workers == most])[0]
    error, worst = _errors(found, points)
    return replace(found, error=error, worst=worst, held_out=held_out)


def best_fit(points: Sequence[Point], *, linear: bool) -> Fit:
    """Return the best fit, crowded or not, of the linear shape or of both shapes."""
    shapes = ("linear",) if linear else ("linear", "logarithmic")
    every = [fit(points, s, crowded=c) for s in shapes for c in (False, True)]
    return min(every, key=lambda f: f.error)


def _fit(points: Sequence[Point], shape: str, *, crowded: bool) -> Fit:
    seconds = np.array([p.seconds for p in points])
    a = columns(points, shape, crowded=crowded) / seconds[:, None]
    scale = np.abs(a).max(axis=0)
    a = a / scale
    best, least = np.zeros(3), math.inf
    # This is non-negative least squares: with three columns all supports can be tried.
    for count in (1, 2, 3):
        for some in itertools.combinations(range(3), count):
            part, *_ = np.linalg.lstsq(a[:, some], np.ones(len(a)), rcond=None)
            if (part < 0.0).any():
                continue
            wrong = float(((a[:, some] @ part - 1.0) ** 2).sum())
            if wrong < least - 1e-15:
                best, least = np.zeros(3), wrong
                best[list(some)] = part
    best = best / scale
    return Fit(float(best[0]), float(best[1]), float(best[2]), shape, crowded)


def _errors(found: Fit, points: Sequence[Point]) -> tuple[float, float]:
    off = np.array(
        [found.seconds(p.workers, p.bytes, p.crowd) / p.seconds - 1 for p in points]
    )
    return float(np.sqrt((off**2).mean())), float(np.abs(off).max())


@dataclass(frozen=True)
class Network(Comm):
    """The network of codedgrad's exchange, for the simulator.

    Attributes:
        start_s: seconds that a whole exchange takes to start, half of it in each hop.
    """

    start_s: float = 0.0

    def hop_s(self, workers: int) -> float:
        """Return the seconds that a row takes to its owners, or a result to all."""
        return super().hop_s(workers) + (self.start_s / 2 if workers > 1 else 0.0)

    def allreduce_s(self, workers: int) -> float:
        """Return the seconds of the best known all-reduce on this network.

        It is the fastest of a ring, halving and doubling, and recursive doubling, which
        sends all D bytes log2(n) times.
        """
        n, d = workers, self.gradient_bytes
        if n < 2:
            return 0.0
        least = 2 * (n - 1) / n * d * self.beta_s
        rounds = math.ceil(math.log2(n))
        ways = (
            2 * (n - 1) * self.alpha_s + least,
            2 * rounds * self.alpha_s + least,
            rounds * (self.alpha_s + d * self.beta_s),
        )
        return self.start_s + min(ways)


def network_of(found: Fit, gradient_bytes: float) -> Network:
    """Return the network of a fit, with a core for every worker."""
    return Network(found.alpha_s, found.beta_s, gradient_bytes, found.start_s)


def stated(name: str, gradient_bytes: float) -> Network:
    """Return a network of the table NETWORKS."""
    return Network(*NETWORKS[name], gradient_bytes)
