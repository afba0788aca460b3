"""How fast every worker is in every step, under one of two models of slowness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.traces import Log

MODELS = ("rate", "stall")
_USUAL = "what that worker usually took: those steps were over before it began"


@dataclass(frozen=True)
class Times:
    """Slowness, in units of the step's median pass.

    A worker that begins at 0 has done w passes of work at time stall + w * pace. With x
    the ratio of its time to the step's median, the two models are

    rate: pace = x, stall = 0. The worker is slow in proportion to its work.
    stall: pace = min(x, 1), stall = x - pace. The worker first does nothing for a
    while, and nothing can interrupt that; if it is still stalled when the step is over
    it carries the rest into the next one.

    Attributes:
        pace, stall: float64 [steps, workers].
        model: "rate" or "stall".
        filled: number of entries that were missing in the log and are taken as 1, or
            as the worker's usual ratio.
        median_s: seconds of one unit.
        filled_by: what the missing entries are taken as, in words.
    """

    pace: NDArray[np.float64]
    stall: NDArray[np.float64]
    model: str
    filled: int = 0
    median_s: float = 1.0
    filled_by: str = "the step's median"

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of steps and of workers."""
        return int(self.pace.shape[0]), int(self.pace.shape[1])

    def alone(self) -> NDArray[np.float64]:
        """Return the time x [steps, workers] of one pass by each worker."""
        return self.stall + self.pace

    def bound(self) -> NDArray[np.float64]:
        """Return the time [steps] of a perfect division of n passes among all workers.

        It is the T with sum_i max(0, T - stall_i) / pace_i = n; under `rate` that is
        n / sum_i (1 / x_i). No policy is faster unless it leaves work out.
        """
        n = self.shape[1]
        order = np.argsort(self.stall, axis=1, kind="stable")
        speed = np.take_along_axis(1.0 / self.pace, order, axis=1)
        stall = np.take_along_axis(self.stall, order, axis=1)
        # The first k workers alone need T_k >= T, and the right k need T.
        enough = (n + np.cumsum(stall * speed, axis=1)) / np.cumsum(speed, axis=1)
        return np.asarray(enough.min(axis=1))

    def first(self, steps: int) -> Times:
        """Return the first `steps` steps."""
        return self.rows(np.arange(min(steps, self.shape[0])))

    def rows(self, steps: NDArray[np.int64]) -> Times:
        """Return the steps with these indices."""
        pace, stall = self.pace[steps], self.stall[steps]
        return replace(self, pace=pace, stall=stall)


def from_ratios(
    ratios: NDArray[np.float64],
    model: str = "rate",
    median_s: float = 1.0,
    *,
    missing_is_late: bool = False,
) -> Times:
    """Make times from ratios to the step's median [steps, workers].

    NaN, a missing entry, is taken as 1; with `missing_is_late` as the median of the
    worker's other ratios, and as the largest of all where it has no other.

    Raises:
        ConfigError: there is no such model.
    """
    if model not in MODELS:
        raise ConfigError(f"model must be one of {MODELS}, got {model!r}")
    missing = np.isnan(ratios)
    x = np.where(missing, _usual(ratios) if missing_is_late else 1.0, ratios)
    pace = x if model == "rate" else np.minimum(x, 1.0)
    words = _USUAL if missing_is_late else Times.filled_by
    filled = int(missing.sum())
    return Times(pace, x - pace, model, filled, median_s=median_s, filled_by=words)


def from_log(log: Log, model: str = "rate") -> Times:
    """Make times of the steps of a log in which half of the workers took part."""
    median_s = float(np.nanmedian(log.medians()))
    late = log.missing_is_late
    return from_ratios(log.ratios(), model, median_s, missing_is_late=late)


def _usual(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median ratio of each worker [workers]."""
    absent = np.isnan(ratios).all(axis=0)
    usual = np.full(ratios.shape[1], max(1.0, float(np.nanmax(ratios))))
    usual[~absent] = np.nanmedian(ratios[:, ~absent], axis=0)
    return usual
