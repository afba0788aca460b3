"""What a worker keeps of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad.monitor.record import Estimate, RunRecord, judged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.monitor.report import StepReport


def estimate(step: int, predicted: float, truth: float = float("nan")) -> Estimate:
    return Estimate(
        step, bucket=0, missing=0.25, predicted=predicted, bound=0.4, truth=truth
    )


def test_arrivals_have_nan_where_nobody_came(
    make_record: Callable[..., RunRecord],
) -> None:
    times = make_record().arrivals(4)
    assert times.shape == (6, 4)
    np.testing.assert_array_equal(times[:, 1], 0.02)
    np.testing.assert_array_equal(np.isnan(times[:, 2]), [1, 0, 1, 0, 1, 0])
    assert np.isnan(times[:, 3]).all()


def test_summary(make_record: Callable[..., RunRecord]) -> None:
    summary = make_record().summary(skip=2)
    assert summary["steps"] == 6
    assert summary["step_s"] == pytest.approx(0.45)
    assert summary["redundant_passes"] == 3
    assert summary["abandoned"] == 1
    assert "decoder" not in summary
    assert RunRecord().summary() == {"steps": 0}


def test_estimates_are_judged_by_the_true_errors_that_are_known() -> None:
    figures = judged([estimate(0, 0.1, 0.05), estimate(1, 0.3, 0.5), estimate(2, 0.2)])
    assert (figures["settled"], figures["known"]) == (3, 2)
    assert figures["missing"] == 0.25
    assert figures["predicted"] == pytest.approx(0.2)
    assert figures["true"] == pytest.approx(0.275)
    assert figures["calibration"] == pytest.approx(0.2 / 0.275)
    assert figures["exceeded"] == 0.5  # 0.5 > 0.4
    nothing = judged([])
    assert (nothing.pop("settled"), nothing.pop("known")) == (0, 0)
    assert set(nothing.values()) == {None}


def test_late_and_refused_rows_are_counted() -> None:
    record = RunRecord()
    for worker in (1, 2, 1):
        record.late(worker)
        record.refused(worker)
    assert record.late_rows == record.refused_rows == {1: 2, 2: 1}
    assert record.decoder_summary()["refused_rows"] == 3


def test_a_long_run_keeps_the_latest(make_record: Callable[..., RunRecord]) -> None:
    record = RunRecord(limit=100)
    for report in make_record(250).reports:
        record.append(report)
    assert len(record.reports) <= 100
    assert record.reports[-1].step == 249
    for step in range(250):
        record.settle(estimate(step, 0.1))
    assert len(record.estimates) <= 100
    assert record.estimates[-1].step == 249


def test_an_estimate_is_replaced_when_its_true_error_is_known() -> None:
    record = RunRecord()
    record.settle(estimate(3, 0.1))
    assert not record.estimates[0].known
    record.settle(estimate(3, 0.1, 0.2))
    assert [e.truth for e in record.estimates] == [0.2]


def test_save(make_record: Callable[..., RunRecord], tmp_path: Path) -> None:
    make_record().save(tmp_path / "run.npz", 3)
    with np.load(tmp_path / "run.npz") as saved:
        names = {"arrivals_s", "step", "step_s", "compute_s", "wait_s", "loss"}
        assert set(saved) >= names
        np.testing.assert_array_equal(saved["step"], range(6))
        assert saved["arrivals_s"].shape == (6, 3)


def test_a_report_comes_back_as_it_was(exact_report: StepReport) -> None:
    record = RunRecord()
    for step in range(200):
        record.append(replace(exact_report, step=step))
    assert list(record.reports) == [replace(exact_report, step=s) for s in range(200)]
    assert record.reports[-2:] == [record.reports[198], record.reports[199]]


@pytest.mark.parametrize("limit", [1, 3, 64, 100])
def test_the_latest_are_kept_in_order(
    limit: int, make_report: Callable[..., StepReport]
) -> None:
    record, truth = RunRecord(limit), []
    for step in range(250):
        # Workers come later, and estimates now and then.
        arrivals = {w: 0.5 * w + step for w in range(step % 7, 1 + step // 30)}
        errors = ((step - 1, 0.25),) if step % 5 == 0 else ()
        truth.append(make_report(step=step, arrivals_s=arrivals, true_errors=errors))
        record.append(truth[-1])
        assert list(record.reports) == truth[-limit:][-len(record.reports) :]
    assert len(record.reports) == limit
    np.testing.assert_array_equal(
        record.reports.numbers("step"), range(250 - limit, 250)
    )
    with pytest.raises(IndexError):
        record.reports[limit]
    record.reports.clear()
    assert list(record.reports) == []
    record.append(truth[7])
    assert list(record.reports) == [truth[7]]


def test_a_thousand_workers_fit(make_report: Callable[..., StepReport]) -> None:
    record = RunRecord()
    report = make_report(arrivals_s=dict.fromkeys(range(1024), 0.1))
    for _ in range(64):
        record.append(report)
    ring = record.reports
    assert ring._most(1024) == 8192
    assert ring._most(4) == 100_000
    sizes = (ring._numbers.itemsize, ring._arrivals.itemsize * 1024)
    assert ring._most(1024) * sum(sizes) < 100e6
    assert ring._most(4) * (sizes[0] + 4 * 8) < 100e6
