"""Reports are kept, and written where there is a log."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from codedgrad.monitor import recorder as recorder_module
from codedgrad.monitor.recorder import Recorder
from codedgrad.monitor.reporter import Reporter
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.monitor.report import StepReport


def test_reports_are_kept_and_written(
    make_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    reporter = Reporter(Recorder(tmp_path, 0))
    for step in range(3):
        reporter.add(make_report(step=step, compute_s=0.1, arrivals_s={}), 0.5)
    reporter.close()
    reporter.close()  # for the second time: nothing
    assert [r.step for r in reporter.record.reports] == [0, 1, 2]
    assert read_run(tmp_path).columns["seconds"].tolist() == [[0.2], [0.2], [0.2]]


def test_without_a_log(make_report: Callable[..., StepReport]) -> None:
    reporter = Reporter(None)
    reporter.add(make_report(), 1.0)
    reporter.close()
    assert len(reporter.record.reports) == 1


def full_disk(folder: Path, recorder: Recorder) -> None:
    """Let the log's file be one that takes nothing, as on a full disk."""
    recorder._file.close()
    (folder / "worker-0.csv").unlink()
    (folder / "worker-0.csv").symlink_to("/dev/full")
    recorder._file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    recorder._writer = csv.writer(recorder._file)


def removed_folder(folder: Path, recorder: Recorder) -> None:
    shutil.rmtree(folder)


def replaced_file(folder: Path, recorder: Recorder) -> None:
    (folder / "worker-0.csv").unlink()
    (folder / "worker-0.csv").write_text("another run\n")


@pytest.mark.parametrize("at_close", [False, True])
@pytest.mark.parametrize("fault", [full_disk, removed_folder, replaced_file])
def test_a_log_that_cannot_be_written_ends_with_one_warning(
    fault: Callable[[Path, Recorder], None],
    at_close: bool,
    make_report: Callable[..., StepReport],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    every_s = 1e9 if at_close else 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "_FLUSH_EVERY_S", every_s)
        end_a_log(fault, make_report, tmp_path, caplog)


def end_a_log(
    fault: Callable[[Path, Recorder], None],
    make_report: Callable[..., StepReport],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "log"
    recorder = Recorder(folder, 0)
    reporter = Reporter(recorder)
    reporter.add(make_report(step=0), 1.0)
    fault(folder, recorder)
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        for step in range(1, 4):
            reporter.add(make_report(step=step), 1.0)
        reporter.close()
        reporter.close()
    assert len(reporter.record.reports) == 4
    (warning,) = caplog.records
    assert "worker-0.csv cannot be written any more (" in warning.getMessage()
    assert "the training goes on without it" in warning.getMessage()
