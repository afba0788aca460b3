"""The writer of a run's log: what each step of one worker took, one line per step."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError
from codedgrad.monitor.report import LOGGED

if TYPE_CHECKING:
    from codedgrad.monitor.columns import Column
    from codedgrad.monitor.report import StepReport

_FLUSH_EVERY_S = 1.0  # a killed worker loses at most this much of its log
_STEP, *_OTHERS = LOGGED
HEADER = (
    _STEP.heading,
    *("worker", "seconds", "done"),  # these are the log's own, see `Recorder`
    *(column.heading for column in _OTHERS),
)


class Recorder:
    """Writes FOLDER/worker-<rank>.csv, the log of one worker.

    `codedgrad.monitor.runlog.read_run(FOLDER)` joins the logs of all workers. Each line
    begins with

        step, worker   The numbers of the step and of this worker.
        seconds        The time of the worker's own required passes. If the worker
                       abandoned them, it is the time that they would have taken at the
                       speed so far; it is NaN if the step was over before the worker
                       began it.
        done           The share of the required passes that was done.

    The other columns are fields of `StepReport`.
    """

    def __init__(self, folder: str | Path, worker: int) -> None:
        """Create the folder and this worker's file in it.

        Raises:
            ConfigError: The folder cannot be written, or it holds another run.
        """
        path = Path(folder) / f"worker-{worker}.csv"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="utf-8", newline="")
        except FileExistsError:
            raise ConfigError(
                f"{path} exists: this folder holds the log of another run; name a new "
                f"one or delete it"
            ) from None
        except OSError as error:
            raise ConfigError(f"the log {path} cannot be written: {error}") from error
        self._worker = worker
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._lines: list[tuple[str, ...]] = [HEADER]
        self.flush()

    def step(self, report: StepReport, done: float) -> None:
        """Add the line of a step.

        Args:
            report: The report of the step.
            done: The share of the own required passes that was done.
        """
        # If nothing was done, the time so far is all that is known: a lower bound.
        own_s = report.compute_s / done if done > 0.0 else report.compute_s
        seconds = math.nan if report.fast_forwarded else own_s
        self._lines.append(
            (
                self._text(_STEP, report),
                str(self._worker),
                f"{seconds:.6g}",
                f"{done:.3g}",
                *(self._text(column, report) for column in _OTHERS),
            )
        )
        if time.monotonic() - self._flushed >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Hand all lines so far to the operating system."""
        self._writer.writerows(self._lines)
        self._file.flush()
        self._lines.clear()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the remaining lines and close the file; a second call does nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _text(self, column: Column, report: StepReport) -> str:
        value, form = getattr(report, column.name), column.log or ""
        if column.kind == "number":
            return format(value, form)
        if self._worker != 0:  # one worker's view of the others is enough
            return ""
        return " ".join(f"{worker}:{x:{form}}" for worker, x in value.items())
