"""The record of a run, its picture and its TensorBoard files."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import ConfigError, codes, monitor
from codedgrad.monitor.report import Estimate, RunRecord, StepReport
from codedgrad.monitor.reporter import Reporter, StepState
from codedgrad.step.passes import Stopwatch
from codedgrad.step.patience import Patience

if TYPE_CHECKING:
    from pathlib import Path


def record(steps: int = 6) -> RunRecord:
    made = RunRecord()
    for step in range(steps):
        arrivals = {0: 0.01, 1: 0.02} | ({2: 0.03} if step % 2 else {})
        made.append(
            StepReport(
                step=step,
                step_s=0.1 * (step + 1),
                compute_s=0.05,
                wait_s=0.02,
                backpressure_s=0.0,
                redundant_passes=1 - step % 2,
                abandoned=step == 3,
                fast_forwarded=False,
                loss=2.0 - 0.1 * step,
                arrivals_s=arrivals,
            )
        )
    return made


def test_arrivals_have_nan_where_nobody_came() -> None:
    times = record().arrivals(4)
    assert times.shape == (6, 4)
    np.testing.assert_array_equal(times[:, 1], 0.02)
    np.testing.assert_array_equal(np.isnan(times[:, 2]), [1, 0, 1, 0, 1, 0])
    assert np.isnan(times[:, 3]).all()


def test_summary() -> None:
    summary = record().summary(skip=2)
    assert summary["steps"] == 6
    assert summary["step_s"] == pytest.approx(0.45)
    assert summary["redundant_passes"] == 3
    assert summary["abandoned"] == 1
    assert RunRecord().summary() == {"steps": 0}


class Settling:
    """An exchange of which only the reports are asked."""

    def __init__(self) -> None:
        self.found: list[list[tuple[float, ...]]] = []
        self.came: list[tuple[int, int, int, int, float]] = []
        self.settled_slices = 0
        self.asked = 0

    def settled(self) -> list[Any]:
        self.asked += 1
        names = ("step", "bucket", "missing", "predicted", "bound", "truth")
        found = self.found.pop(0) if self.found else []
        return [SimpleNamespace(**dict(zip(names, f, strict=True))) for f in found]

    def arrivals(self) -> list[tuple[int, int, int, int, float]]:
        came, self.came = self.came, []
        return came

    def required_rows(self) -> list[list[int]]:
        return [[0], [1], [2]]

    def counters(self) -> dict[str, float]:
        return {"decode_s": 0.0, "slices_settled": self.settled_slices}


def reported(steps: int, exchange: Settling) -> tuple[RunRecord, list[StepReport]]:
    reporter = Reporter(codes.uncoded(3), 0, Patience(0.1), None)
    made = []
    for step in range(steps):
        state, clock = StepState(step, forwarded=False), Stopwatch()
        clock.lap("compute")
        clock.lap("wait")
        made.append(reporter.end(state, clock, exchange, 0.0, 1.0))  # type: ignore[arg-type]
    return reporter.record, made


def test_an_exact_session_is_never_asked_for_estimates() -> None:
    exchange = Settling()
    record, reports = reported(3, exchange)
    assert exchange.asked == 0
    assert record.estimates == []
    assert [r.settled for r in reports] == [0, 0, 0]
    assert "decoder" not in record.summary()


def test_estimates_and_their_truth() -> None:
    exchange = Settling()
    exchange.settled_slices = 2
    exchange.found = [
        [(0, 0, 0.25, 0.1, 0.2, -1.0), (0, 1, 0.25, 0.3, 0.4, -1.0)],
        [(2, 0, 0.5, 0.2, 0.3, -1.0), (0, 0, 0.25, 0.1, 0.2, 0.05)],
        [(0, 1, 0.25, 0.3, 0.4, 0.5)],
    ]
    record, reports = reported(3, exchange)
    assert [r.settled for r in reports] == [2, 0, 1]  # step 2's came early
    assert reports[0].predicted_error == pytest.approx(0.2)
    assert reports[2].missing == 0.5
    assert [r.true_errors for r in reports] == [(), ((0, 0.05),), ((0, 0.5),)]
    assert [e.known for e in record.estimates] == [True, True, False]
    summary = record.summary()["decoder"]
    assert (summary["settled"], summary["known"]) == (3, 2)
    assert summary["predicted"] == pytest.approx(0.2)
    assert summary["true"] == pytest.approx(0.275)
    assert summary["calibration"] == pytest.approx(0.2 / 0.275)
    assert summary["exceeded"] == 0.5  # 0.5 > 0.4
    assert summary["refused_rows"] == 0


def test_refused_rows_are_said_once_a_step(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Settling()
    exchange.came = [(0, 0, 0, 0, 0.1), (0, 1, 1, 3, 0.1), (0, 1, 1, 3, 0.2)]
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        record, reports = reported(2, exchange)
    (line,) = caplog.messages
    assert "step 0" in line
    assert "worker(s) 1 holds NaN or Inf" in line
    assert set(reports[0].arrivals_s) == {0}
    assert [r.refused for r in reports] == [1, 0]
    assert record.refused_rows == {1: 1}
    assert record.summary()["decoder"]["refused_rows"] == 1
    assert record.summary()["decoder"]["calibration"] is None


def test_a_long_run_keeps_the_latest() -> None:
    made = RunRecord(limit=100)
    for report in record(250).reports:
        made.append(report)
    assert len(made.reports) <= 100
    assert made.reports[-1].step == 249
    for step in range(250):
        made.settle(Estimate(step, 0, 0.25, 0.1, 0.2))
    assert len(made.estimates) <= 100
    assert made.estimates[-1].step == 249


def test_save(tmp_path: Path) -> None:
    record().save(tmp_path / "run.npz", 3)
    with np.load(tmp_path / "run.npz") as saved:
        np.testing.assert_array_equal(saved["step"], range(6))
        assert saved["arrivals_s"].shape == (6, 3)


def test_picture(tmp_path: Path) -> None:
    import matplotlib.image as image

    for steps in (1, 1500):
        path = tmp_path / f"{steps}.png"
        monitor.plot_arrivals(record(steps), 3, path)
        pixels = image.imread(path)[:, :, :3]
        orange = np.array([0xE6, 0x9F, 0x00]) / 255
        assert np.isclose(pixels, orange, atol=0.01).all(-1).mean() > 0.01
    with pytest.raises(ConfigError, match="no steps"):
        monitor.plot_arrivals(RunRecord(), 3, tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = monitor.TensorBoardMonitor(tmp_path, workers=3)
    for report in record().reports:
        board.step(report, lr=0.5)
    board.picture(record(), 3)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    loss = events.Scalars("train/loss")
    assert [e.step for e in loss] == list(range(6))
    assert loss[3].value == pytest.approx(1.7)
    missing = [e.value for e in events.Scalars("straggler/missing")]
    assert missing == [1, 0, 1, 0, 1, 0]
    (image,) = events.Images("straggler/arrivals")
    assert image.width > image.height > 100


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_hold_the_decoders_errors(tmp_path: Path) -> None:
    from dataclasses import replace

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = monitor.TensorBoardMonitor(tmp_path, workers=3)
    reports = record(4).reports
    reports[1] = replace(reports[1], settled=2, missing=0.25, predicted_error=0.1)
    reports[3] = replace(reports[3], true_errors=((1, 0.1), (1, 0.3)))
    for report in reports:
        board.step(report)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()

    def scalars(name: str) -> list[tuple[int, float]]:
        return [(e.step, round(e.value, 6)) for e in events.Scalars(f"decoder/{name}")]

    assert scalars("settled") == [(1, 2), (2, 0), (3, 0)]
    assert scalars("missing") == [(1, 0.25)]
    assert scalars("predicted_error") == [(1, 0.1)]
    assert scalars("true_error") == [(1, 0.2)]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plots_arrivals'"):
        monitor.plots_arrivals  # noqa: B018
