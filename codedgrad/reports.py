"""What happened, step by step, as one worker saw it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class StepReport:
    """One step on this worker. Seconds, from the start of `backward`.

    Attributes:
        step: its number.
        begin_s: when it began, seconds of the system's clock.
        step_s: all of `backward`.
        compute_s: own required passes (until abandoned).
        wait_s: from then on until decoded, redundant passes included.
        backpressure_s: waited because another worker lags a whole window.
        help_s: of wait_s, in redundant passes.
        send_s: of compute_s and wait_s, handing rows to the engine.
        decode_s: the engine's thread summing this worker's slices, beside all this.
        apply_s: since the previous `backward`: optimizer, schedule, whatever the
            script does.
        redundant_passes: back-up items started here.
        abandoned: a pass was left unfinished because it was not needed any more.
        fast_forwarded: decoded before this worker began.
        loss: mean over the batch.
        arrivals_s: worker -> when its own row arrived here; absent: not before the
            end of the step.
    """

    step: int
    step_s: float
    compute_s: float
    wait_s: float
    backpressure_s: float
    redundant_passes: int
    abandoned: bool
    fast_forwarded: bool
    loss: float
    arrivals_s: dict[int, float]
    begin_s: float = 0.0
    help_s: float = 0.0
    send_s: float = 0.0
    decode_s: float = 0.0
    apply_s: float = 0.0


class RunRecord:
    """The reports of a run, the latest `limit` of them."""

    def __init__(self, limit: int = 100_000) -> None:
        """Keep at most `limit` steps."""
        self._limit = limit
        self.reports: list[StepReport] = []
        self.late_rows: dict[int, int] = {}  # by worker

    def append(self, report: StepReport) -> None:
        """Add a step."""
        self.reports.append(report)
        if len(self.reports) > self._limit:
            del self.reports[: self._limit // 10]

    def late(self, worker: int) -> None:
        """A worker's own row came after its step was over."""
        self.late_rows[worker] = self.late_rows.get(worker, 0) + 1

    def arrivals(self, workers: int) -> NDArray[np.float64]:
        """Seconds [steps, workers]; NaN where the row was not there at the end."""
        times = np.full((len(self.reports), workers), np.nan)
        for i, report in enumerate(self.reports):
            for worker, seconds in report.arrivals_s.items():
                times[i, worker] = seconds
        return times

    def save(self, path: Path, workers: int) -> None:
        """Write an .npz: step, step_s, compute_s, wait_s, loss, arrivals_s."""
        columns: dict[str, Any] = {
            name: np.array([getattr(r, name) for r in self.reports])
            for name in ("step", "step_s", "compute_s", "wait_s", "loss")
        }
        np.savez_compressed(path, arrivals_s=self.arrivals(workers), **columns)

    def summary(self, skip: int = 0) -> dict[str, float | int]:
        """Medians and counts, without the first `skip` steps."""
        kept = self.reports[skip:] or self.reports
        if not kept:
            return {"steps": 0}
        return {
            "steps": len(self.reports),
            "step_s": statistics.median(r.step_s for r in kept),
            "step_s_mean": statistics.fmean(r.step_s for r in kept),
            "compute_s": statistics.median(r.compute_s for r in kept),
            "wait_s": statistics.median(r.wait_s for r in kept),
            "redundant_passes": sum(r.redundant_passes for r in self.reports),
            "abandoned": sum(r.abandoned for r in self.reports),
            "fast_forwarded": sum(r.fast_forwarded for r in self.reports),
        }
