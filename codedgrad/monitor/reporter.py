"""Keeps the reports of one worker and writes them to its log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.monitor.record import RunRecord

if TYPE_CHECKING:
    from codedgrad.monitor.recorder import Recorder
    from codedgrad.monitor.report import StepReport


class Reporter:
    """Takes the report of every step.

    Attributes:
        record: What is kept in memory of the run.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        """Start a record; `recorder` writes the log, None writes none."""
        self.record = RunRecord()
        self._recorder = recorder

    def add(self, report: StepReport, done: float) -> None:
        """Keep a report and write its line.

        Args:
            report: The report of a step that is over.
            done: The share of the worker's own required passes that was done.
        """
        self.record.append(report)
        if self._recorder is not None:
            self._recorder.step(report, done)

    def close(self) -> None:
        """Write the remaining lines of the log and close it."""
        if self._recorder is not None:
            self._recorder.close()
