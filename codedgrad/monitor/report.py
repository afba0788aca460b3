"""What happened, step by step, as one worker saw it."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Estimate(NamedTuple):
    """A slice of one bucket that this worker, its owner, settled for.

    Errors are relative and squared: |estimate - sum|^2 / |sum|^2.

    Attributes:
        step: its number.
        bucket: its number.
        missing: share of the batch that had not arrived.
        predicted: the error that the decoder expected.
        bound: which the error was to stay below.
        truth: the error, known once all late rows have come; NaN before.
    """

    step: int
    bucket: int
    missing: float
    predicted: float
    bound: float
    truth: float = math.nan

    @property
    def known(self) -> bool:
        """Is the true error known?"""
        return not math.isnan(self.truth)


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
        settled: own slices for which an estimate was taken; 0 in an exact session.
        missing: share of the batch that they lacked, their mean.
        predicted_error: of their estimates, the mean.
        true_errors: (step, error) of estimates, own slices of earlier steps mostly,
            whose late rows have come since the last report.
        refused: rows with NaN or Inf that were refused here.
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
    settled: int = 0
    missing: float = 0.0
    predicted_error: float = 0.0
    true_errors: tuple[tuple[int, float], ...] = ()
    refused: int = 0


class RunRecord:
    """The reports of a run, the latest `limit` of them, and as many estimates."""

    def __init__(self, limit: int = 100_000) -> None:
        """Keep at most `limit` steps and estimates."""
        self._limit = limit
        self.reports: list[StepReport] = []
        self.late_rows: dict[int, int] = {}  # by worker
        self.refused_rows: dict[int, int] = {}  # by worker
        self._estimates: dict[tuple[int, int], Estimate] = {}

    def append(self, report: StepReport) -> None:
        """Add a step."""
        self.reports.append(report)
        if len(self.reports) > self._limit:
            del self.reports[: self._limit // 10]

    def late(self, worker: int) -> None:
        """A worker's own row came after its step was over."""
        self.late_rows[worker] = self.late_rows.get(worker, 0) + 1

    def refused(self, worker: int) -> None:
        """A row of a worker was refused."""
        self.refused_rows[worker] = self.refused_rows.get(worker, 0) + 1

    def settle(self, estimate: Estimate) -> None:
        """Add an estimate, or the same one again with the truth."""
        self._estimates[estimate.step, estimate.bucket] = estimate
        if len(self._estimates) > self._limit:
            for oldest in list(self._estimates)[: self._limit // 10]:
                del self._estimates[oldest]

    @property
    def estimates(self) -> list[Estimate]:
        """What this worker settled for, the latest of it."""
        return list(self._estimates.values())

    def decoder_summary(self) -> dict[str, float | int | None]:
        """How the decoder did on this worker's slices.

        settled: slices; known: those whose true error is known; missing, predicted:
        means over all; true: mean over the known ones; calibration: the mean predicted
        error of the known ones over `true`; exceeded: share of the known ones whose
        true error is above its bound; refused_rows. None: nothing to tell it from.
        """
        refused = sum(self.refused_rows.values())
        return {**judged(self.estimates), "refused_rows": refused}

    def save_estimates(self, path: Path) -> None:
        """Write a CSV, one line per estimate.

        As FOLDER/decoder-<rank>.csv of a run's log it becomes a section of
        `codedgrad report FOLDER`.
        """
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Estimate._fields)
            writer.writerows(self._estimates.values())

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

    def summary(self, skip: int = 0) -> dict[str, Any]:
        """Medians and counts, without the first `skip` steps.

        With "decoder", see `decoder_summary`, if it had anything to do.
        """
        kept = self.reports[skip:] or self.reports
        if not kept:
            return {"steps": 0}
        out: dict[str, Any] = {
            "steps": len(self.reports),
            "step_s": statistics.median(r.step_s for r in kept),
            "step_s_mean": statistics.fmean(r.step_s for r in kept),
            "compute_s": statistics.median(r.compute_s for r in kept),
            "wait_s": statistics.median(r.wait_s for r in kept),
            "redundant_passes": sum(r.redundant_passes for r in self.reports),
            "abandoned": sum(r.abandoned for r in self.reports),
            "fast_forwarded": sum(r.fast_forwarded for r in self.reports),
        }
        if self._estimates or self.refused_rows:
            out["decoder"] = self.decoder_summary()
        return out


def judged(estimates: Sequence[Estimate]) -> dict[str, float | int | None]:
    """The figures of `RunRecord.decoder_summary`, of any estimates."""
    known = [e for e in estimates if e.known]
    true = _mean([e.truth for e in known])
    expected = _mean([e.predicted for e in known])
    return {
        "settled": len(estimates),
        "known": len(known),
        "missing": _mean([e.missing for e in estimates]),
        "predicted": _mean([e.predicted for e in estimates]),
        "true": true,
        "calibration": expected / true if true and expected is not None else None,
        "exceeded": _mean([float(e.truth > e.bound) for e in known]),
    }


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
