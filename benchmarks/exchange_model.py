"""What an exchange costs: start + messages * alpha + bytes * beta, fitted and stated.

With n workers and a gradient of D bytes a worker sends, one after another,

    linear       2 (n - 1) messages, 2 (n - 1) / n D bytes: codedgrad's two hops (a row
                 to its owners, results to all); also a ring
    logarithmic  2 log2(n) messages, as many bytes: recursive halving and doubling
                 (Rabenseifner 2004)

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
    """One measured exchange; `crowd`: workers of a machine / its cores, at least 1."""

    workers: int
    bytes: float
    seconds: float
    crowd: float = 1.0


# Stated, not measured: (alpha in s, beta in s per byte).
NETWORKS = {
    "25 GbE": (20e-6, 1 / 3.1e9),
    "InfiniBand 200 Gb/s": (2e-6, 1 / 24e9),
}


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        start_s, alpha_s, beta_s: its coefficients.
        shape: "linear" or "logarithmic".
        crowded: messages and bytes count `crowd` times.
        error, worst: root mean square and largest |model / median - 1| of the points.
        held_out: the error on the points with most workers of a fit to the others;
            None where all have the same number.
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
        """Of one exchange; nothing for one worker."""
        if workers < 2:
            return 0.0
        point = Point(workers, gradient_bytes, 1.0, crowd)
        row = columns([point], self.shape, crowded=self.crowded)
        return float(row[0] @ [self.start_s, self.alpha_s, self.beta_s])

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def columns(
    points: Sequence[Point], shape: str, *, crowded: bool
) -> NDArray[np.float64]:
    """[points, 3]: how often start, alpha and beta count."""
    rows = []
    for n, size, _, crowd in points:
        times = crowd if crowded else 1.0
        messages = 2 * (n - 1) if shape == "linear" else 2 * math.log2(n)
        rows.append([1.0, times * messages, times * 2 * (n - 1) / n * size])
    return np.array(rows)


def fit(
    points: Sequence[Point], shape: str = "linear", *, crowded: bool = False
) -> Fit:
    """Least squares, and what it misses by."""
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
    """Of the crowded and uncrowded fits of these shapes the one with least error."""
    shapes = ("linear",) if linear else ("linear", "logarithmic")
    every = [fit(points, s, crowded=c) for s in shapes for c in (False, True)]
    return min(every, key=lambda f: f.error)


def _fit(points: Sequence[Point], shape: str, *, crowded: bool) -> Fit:
    seconds = np.array([p.seconds for p in points])
    a = columns(points, shape, crowded=crowded) / seconds[:, None]
    scale = np.abs(a).max(axis=0)
    a = a / scale
    best, least = np.zeros(3), math.inf
    # Non-negative least squares: with three columns all supports can be tried.
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
    """codedgrad's exchange, for the simulator.

    Attributes:
        start_s: of a whole exchange, half of it in each hop.
    """

    start_s: float = 0.0

    def hop_s(self, workers: int) -> float:
        """Seconds of one row to its owners, or of one result to all."""
        return super().hop_s(workers) + (self.start_s / 2 if workers > 1 else 0.0)

    def allreduce_s(self, workers: int) -> float:
        """Seconds of the best known all-reduce on this network.

        The least of a ring, halving and doubling, and recursive doubling, which sends
        all D bytes log2(n) times.
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
    """The fit's own costs, every worker having a core for itself."""
    return Network(found.alpha_s, found.beta_s, gradient_bytes, found.start_s)


def stated(name: str, gradient_bytes: float) -> Network:
    """A network of the table above."""
    return Network(*NETWORKS[name], gradient_bytes)
