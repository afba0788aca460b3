"""What a worker keeps of a run: its reports, and how good its estimates were."""

from __future__ import annotations

import csv
import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codedgrad.monitor.report import COLUMNS
from codedgrad.monitor.ring import ReportRing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from codedgrad.monitor.report import StepReport


_TIMES = ("step_s", "compute_s", "wait_s")
_COUNTS = ("redundant_passes", "abandoned", "fast_forwarded")


class Estimate(NamedTuple):
    """An estimate that a worker took for its slice of one bucket.

    Errors are relative and squared: |estimate - sum|^2 / |sum|^2.

    Attributes:
        step: The number of the step.
        bucket: The number of the bucket.
        missing: The share of the batch that had not arrived.
        predicted: The error that the decoder predicted.
        bound: The largest error that the policy allowed.
        truth: The true error. It is NaN until all late rows have arrived.
        noise: What the estimate was expected to add to the noise of the step, as a
            share of the batch's own sampling noise. It is infinite where that could
            not be told.
        true_noise: What it has added by its true error, infinite until that is known.
    """

    step: int
    bucket: int
    missing: float
    predicted: float
    bound: float
    truth: float = math.nan
    noise: float = math.inf
    true_noise: float = math.inf

    @property
    def known(self) -> bool:
        """Whether the true error is known."""
        return not math.isnan(self.truth)


class RunRecord:
    """The reports and estimates of a run on one worker, the latest of each.

    Attributes:
        reports: The reports, in the order of the steps.
        late_rows: How many of a worker's own rows came after their step was over, by
            worker.
        refused_rows: How many of a worker's rows were refused, by worker.
    """

    def __init__(self, limit: int = 100_000) -> None:
        """Start empty; keep at most `limit` reports and `limit` estimates.

        With many workers fewer reports are kept, so that their arrivals take 64 MiB.
        """
        self._limit = limit
        self.reports = ReportRing(limit)
        self.late_rows: dict[int, int] = {}
        self.refused_rows: dict[int, int] = {}
        self._estimates: dict[tuple[int, int], Estimate] = {}

    def append(self, report: StepReport) -> None:
        """Add the report of a step."""
        self.reports.append(report)

    def late(self, worker: int) -> None:
        """Count an own row of `worker` that came after its step was over."""
        self.late_rows[worker] = self.late_rows.get(worker, 0) + 1

    def refused(self, worker: int) -> None:
        """Count a row of `worker` that was refused."""
        self.refused_rows[worker] = self.refused_rows.get(worker, 0) + 1

    def settle(self, estimate: Estimate) -> None:
        """Add an estimate, or replace it by the same one with its true error."""
        self._estimates[estimate.step, estimate.bucket] = estimate
        if len(self._estimates) > self._limit:
            for oldest in list(self._estimates)[: self._limit // 10]:
                del self._estimates[oldest]

    @property
    def estimates(self) -> list[Estimate]:
        """The estimates that are kept, in the order in which they were taken."""
        return list(self._estimates.values())

    def decoder_summary(self) -> dict[str, float | int | None]:
        """Judge the decoder by this worker's slices.

        Returns:
            The figures of `judged`, and "refused_rows": the number of refused rows.
        """
        refused = sum(self.refused_rows.values())
        return {**judged(self.estimates), "refused_rows": refused}

    def save_estimates(self, path: Path) -> None:
        """Write the estimates as a CSV with one line for each.

        In the folder of the run's log, under the name `decoder-<rank>.csv`, the file
        adds a section to the page of `codedgrad report FOLDER`.
        """
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Estimate._fields)
            writer.writerows(self._estimates.values())

    def arrivals(self, workers: int) -> NDArray[np.float64]:
        """Return `StepReport.arrivals_s` as seconds [steps, workers].

        The value is NaN where a worker's row had not arrived at the end of the step.
        """
        return self.reports.arrivals(workers)

    def save(self, path: Path, workers: int) -> None:
        """Write an .npz with one array for each saved column of the reports.

        Args:
            path: The file to write.
            workers: The number of workers; arrays by worker are [steps, workers].
        """
        arrays: dict[str, Any] = {
            column.name: self.reports.arrivals(workers)
            if column.kind == "by worker"
            else self.reports.numbers(column.name)
            for column in COLUMNS
            if column.saved
        }
        np.savez_compressed(path, **arrays)

    def summary(self, skip: int = 0) -> dict[str, Any]:
        """Summarise the run.

        Args:
            skip: The number of first steps that do not count in means and medians.

        Returns:
            Medians of times, the mean "step_s_mean", and counts. If there were
            estimates or refused rows, "decoder" holds `decoder_summary`.
        """
        reports = self.reports
        if not reports:
            return {"steps": 0}
        first = skip if skip < len(reports) else 0
        values = {name: reports.numbers(name)[first:] for name in _TIMES}
        counts = {name: int(reports.numbers(name).sum()) for name in _COUNTS}
        out: dict[str, Any] = {
            "steps": len(reports),
            "step_s": float(np.median(values["step_s"])),
            "step_s_mean": float(np.mean(values["step_s"])),
            "compute_s": float(np.median(values["compute_s"])),
            "wait_s": float(np.median(values["wait_s"])),
            **counts,
        }
        if self._estimates or self.refused_rows:
            out["decoder"] = self.decoder_summary()
        return out


def judged(estimates: Sequence[Estimate]) -> dict[str, float | int | None]:
    """Judge estimates by the true errors that are known.

    Returns:
        "settled" and "known": the number of estimates, and of those whose true error
        is known. "missing" and "predicted": means over all estimates. "true": the mean
        true error of the known ones. "calibration": the mean predicted error of the
        known ones divided by "true". "exceeded": the share of the known ones whose true
        error is above its bound. "noise" and "true_noise": the means of what the
        estimates add to the batch's noise, expected and by their true errors, where
        that is known. A figure that cannot be told is None.
    """
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
        "noise": _mean([e.noise for e in estimates if math.isfinite(e.noise)]),
        "true_noise": _mean(
            [e.true_noise for e in known if math.isfinite(e.true_noise)]
        ),
    }


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
