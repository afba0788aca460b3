"""The record of a run, its picture and its TensorBoard files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError, monitor
from codedgrad.reports import RunRecord, StepReport

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


def test_a_long_run_keeps_the_latest() -> None:
    made = RunRecord(limit=100)
    for report in record(250).reports:
        made.append(report)
    assert len(made.reports) <= 100
    assert made.reports[-1].step == 249


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


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plots_arrivals'"):
        monitor.plots_arrivals  # noqa: B018
