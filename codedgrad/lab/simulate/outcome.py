"""What a policy makes of the times, and the figures that describe it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.simulate.times import Times


@dataclass(frozen=True)
class Comm:
    """The network: a message of b bytes takes alpha + beta * b (Hockney 1994).

    A row goes in slices to n owners, and a result goes from each owner to all. Each of
    these two hops takes (n - 1) * alpha + (n - 1) / n * gradient_bytes * beta.

    Attributes:
        alpha_s: seconds per message.
        beta_s: seconds per byte.
        gradient_bytes: bytes of one full gradient.
    """

    alpha_s: float = 0.0
    beta_s: float = 0.0
    gradient_bytes: float = 4e6

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.alpha_s, self.beta_s, self.gradient_bytes) < 0.0:
            raise ConfigError(f"times and bytes must not be negative, got {self}")

    def hop_s(self, workers: int) -> float:
        """Return the seconds that a row takes to its owners, or a result to all."""
        others = workers - 1
        return others * self.alpha_s + others / workers * self.beta_s * (
            self.gradient_bytes
        )


@dataclass(frozen=True)
class Outcome:
    """What one policy makes of one set of times, in units of the step's median pass.

    Attributes:
        step: [steps], time of each step, the exchange included.
        redundant: [steps], work done beyond the n passes, over n.
        rows: rows that a worker sends in a step, on average.
        lost: share of the work whose gradient is left out of its step; 0 if exact.
        notes: further figures of this policy alone.
    """

    step: NDArray[np.float64]
    redundant: NDArray[np.float64]
    rows: float = 1.0
    lost: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


def figures(
    policy: str, times: Times, outcome: Outcome, sync: Outcome, comm: Comm
) -> dict[str, Any]:
    """Return the figures of one policy; benchmarks/README.md defines each of them."""
    n = times.shape[1]
    unit = times.median_s
    bound = times.bound() + 2.0 * comm.hop_s(n) / unit
    mean = float(outcome.step.mean())
    sync_mean = float(sync.step.mean())
    bound_speedup = sync_mean / float(bound.mean())
    share = (n - 1) / n * comm.gradient_bytes
    p50, p95, p99 = (float(np.quantile(outcome.step, q)) for q in (0.5, 0.95, 0.99))
    return {
        "policy": policy,
        "workers": n,
        "steps": times.shape[0],
        "model": times.model,
        "mean_step": mean,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "mean_step_s": mean * unit,
        "speedup": sync_mean / mean,
        "bound_speedup": bound_speedup,
        "share_of_bound": (sync_mean / mean) / bound_speedup,
        "median_worker_step": 1.0 + 2.0 * comm.hop_s(n) / unit,
        "redundant_work": float(outcome.redundant.mean()),
        "lost_work": outcome.lost,
        "bytes_per_step": (outcome.rows + 1.0) * share,
        "filled": times.filled,
        **outcome.notes,
    }
