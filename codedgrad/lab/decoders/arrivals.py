"""What an owner has when it decodes: what has arrived, and what it remembers.

All vectors are mean gradients over a shard, not weighted sums. Their D elements are cut
into tiles. This module needs numpy only; nothing in it communicates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.floating[Any]]

AVERAGE_KEEP = 0.9  # what each step keeps of the average of decoded gradients
MEAN_GAIN = 0.2  # the least weight of a shard's new gradient in its running mean


@dataclass(frozen=True)
class Arrivals:
    """The arrivals of one step.

    Attributes:
        rows: [k, D], the mean gradient of each shard over the part of it that arrived;
            ignored where the fraction is 0.
        fraction: alpha [k], the arrived share of each shard, 0 to 1.
        weight: w [k], each shard's share of the batch; sums to 1.
    """

    rows: Vector
    fraction: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def of(
        cls, rows: Vector, fraction: Any, weight: NDArray[np.float64] | None = None
    ) -> Arrivals:
        """Check the arrivals; shards weigh the same if no weight is given.

        A row with NaN or Inf is refused, so that its fraction becomes 0.

        Raises:
            ConfigError: shapes do not fit, a fraction is outside [0, 1], or the weights
                are not shares of the batch.
        """
        rows = np.asarray(rows)
        alpha = np.array(fraction, np.float64)
        if rows.ndim != 2 or alpha.shape != rows.shape[:1]:
            raise ConfigError(
                f"arrivals: wanted rows [k, D] and fraction [k], got {rows.shape} and "
                f"{alpha.shape}"
            )
        if not ((alpha >= 0.0) & (alpha <= 1.0)).all():
            raise ConfigError(f"fractions must be 0 to 1, got {alpha.tolist()}")
        k = len(alpha)
        share = np.full(k, 1.0 / k) if weight is None else np.asarray(weight, float)
        if share.shape != (k,) or (share < 0).any() or abs(share.sum() - 1) > 1e-6:
            raise ConfigError(
                f"weight must be [k], not negative, of sum 1; got {share.tolist()}"
            )
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        alpha[~finite] = 0.0
        clean = rows if finite.all() else np.where(finite[:, None], rows, 0.0)
        return cls(clean, alpha, share)

    @property
    def missing(self) -> float:
        """The batch's missing share, rho = sum_j w_j (1 - alpha_j)."""
        return float(self.weight @ (1.0 - self.fraction))

    def total(self) -> Vector:
        """Return R = sum_j w_j alpha_j rows_j, what arrived of the batch's mean."""
        total: Vector = (self.weight * self.fraction) @ np.where(
            (self.fraction > 0.0)[:, None], self.rows, 0.0
        )
        return total


class Memory:
    """What an owner remembers between steps: 2 k + 2 vectors of D elements.

    Attributes:
        last: h [k, D], each shard's last known gradient.
        mean: e [k, D], each shard's running mean, e_j += gain (g_j - e_j) with
            gain = max(1 / number of gradients seen, 0.2).
        seen: [k], number of gradients known of each shard.
        step: [k], the step of h_j; -1 if there is none.
        previous: [D], the last decoded gradient.
        average: [D], average = 0.9 average + 0.1 decoded.
        decoded: number of steps decoded, which is the number of the present step.
        bounds: [T + 1], where the tiles begin and end.
    """

    def __init__(self, shards: int, bounds: NDArray[np.int64]) -> None:
        """Begin with zeros, since nothing is known.

        Args:
            shards: k.
            bounds: [T + 1], where the tiles begin and end; 0 is first and D last.
        """
        self.bounds = np.asarray(bounds, np.int64)
        count = int(self.bounds[-1])
        self.last = np.zeros((shards, count))
        self.mean = np.zeros((shards, count))
        self.seen = np.zeros(shards, np.int64)
        self.step = np.full(shards, -1, np.int64)
        self.previous = np.zeros(count)
        self.average = np.zeros(count)
        self.decoded = 0

    def tiles(self) -> list[tuple[int, int]]:
        """Return (begin, end) of every tile."""
        edges = self.bounds.tolist()
        return list(itertools.pairwise(edges))

    def shard(self, j: int, step: int, gradient: Vector) -> None:
        """Remember shard j's gradient of `step`, whether it came in time or late.

        One that is older than what is remembered, or has NaN or Inf, changes nothing.
        """
        if step <= self.step[j] or not np.isfinite(gradient).all():
            return
        self.seen[j] += 1
        self.step[j] = step
        self.last[j] = gradient
        self.mean[j] += max(1.0 / self.seen[j], MEAN_GAIN) * (gradient - self.mean[j])

    def result(self, gradient: Vector) -> None:
        """Remember the step's decoded gradient, exact or estimated."""
        self.previous[:] = gradient
        keep = AVERAGE_KEEP if self.decoded else 0.0
        self.average *= keep
        self.average += (1.0 - keep) * gradient
        self.decoded += 1

    def corrected(self, difference: Vector, age: int) -> None:
        """Correct the result of `age` steps ago, which late rows show to be off.

        Age 0 is the last result; `difference` is added to it.
        """
        if age == 0:
            self.previous += difference
        gain = 1.0 if self.decoded == age + 1 else 1.0 - AVERAGE_KEEP
        self.average += gain * AVERAGE_KEEP**age * difference


def tiles_of(sizes: Any, least: int = 256) -> NDArray[np.int64]:
    """Return the boundaries [T + 1] of tiles: tensors, small ones joined to the next.

    Args:
        sizes: elements of each tensor.
        least: least elements of a tile; the last tensors join the tile before them.
    """
    bounds = [0]
    end = 0
    for size in np.asarray(sizes, np.int64).tolist():
        end += size
        if end - bounds[-1] >= least:
            bounds.append(end)
    if end > bounds[-1]:
        if len(bounds) > 1:
            bounds[-1] = end
        else:
            bounds.append(end)
    return np.asarray(bounds, np.int64)
