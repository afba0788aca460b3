"""Reports are kept, and written where there is a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.monitor.recorder import Recorder
from codedgrad.monitor.reporter import Reporter
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
