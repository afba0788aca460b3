"""The writer of a run's log: what each step of one worker took, one line per step."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import time
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.monitor.report import LOGGED

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.monitor.columns import Column
    from codedgrad.monitor.report import StepReport

log = logging.getLogger("codedgrad")

_FLUSH_EVERY_S = 1.0  # a killed worker loses at most this much of its log
_STEP, *_OTHERS = LOGGED
_values = attrgetter(*(column.name for column in LOGGED))
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

    A log that can no longer be written (the disk is full, the folder was removed) ends
    with one warning, and the training goes on without it.
    """

    def __init__(
        self, folder: str | Path, worker: int, *, goes_on: bool = False
    ) -> None:
        """Create the folder and this worker's file in it.

        With `goes_on` it may be there: another process of this worker, which has died,
        has written it, perhaps without the end of its last line.

        Raises:
            ConfigError: The folder cannot be written, or it holds another run.
        """
        path = Path(folder) / f"worker-{worker}.csv"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            goes_on = goes_on and path.exists()
            begun = goes_on and _end_of_lines(path) > 0
            mode = "a" if goes_on else "x"
            self._file = path.open(mode, encoding="utf-8", newline="")
        except FileExistsError:
            raise ConfigError(
                f"{path} exists: this folder holds the log of another run; name a new "
                f"one or delete it"
            ) from None
        except OSError as error:
            raise ConfigError(f"the log {path} cannot be written: {error}") from error
        self._path = path
        self._worker = str(worker)
        self._texts = [_text_of(column, worker) for column in LOGGED]
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._lines: list[tuple[str, ...]] = [] if begun else [HEADER]
        self._flushed = 0.0
        self.flush()

    def step(self, report: StepReport, done: float) -> None:
        """Add the line of a step.

        Args:
            report: The report of the step.
            done: The share of the own required passes that was done.
        """
        if self._file.closed:
            return
        # If nothing was done, the time so far is all that is known: a lower bound.
        own_s = report.compute_s / done if done > 0.0 else report.compute_s
        seconds = math.nan if report.fast_forwarded else own_s
        step, *others = (
            text(x) for text, x in zip(self._texts, _values(report), strict=True)
        )
        own = f"{seconds:.6g}", f"{done:.3g}"
        self._lines.append((step, self._worker, *own, *others))
        if time.monotonic() - self._flushed >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Hand all lines so far to the operating system."""
        if self._file.closed:
            return
        try:
            self._write()
        except OSError as error:
            log.warning(
                "the log %s cannot be written any more (%s); it ends here, and the "
                "training goes on without it",
                self._path,
                error,
            )
            with contextlib.suppress(OSError):  # it tries to write once more
                self._file.close()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the remaining lines and close the file; a second call does nothing."""
        self.flush()
        self._file.close()

    def _write(self) -> None:
        self._writer.writerows(self._lines)
        self._lines.clear()
        self._file.flush()
        # What is written to a file that was removed is lost without an error.
        if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            raise FileNotFoundError(f"another file has taken the place of {self._path}")


def _end_of_lines(path: Path) -> int:
    """Cut off the rest of a line that was not written to its end; return the size."""
    with path.open("r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    return whole


def _text_of(column: Column, worker: int) -> Callable[[Any], str]:
    """Return the function that writes a value of `column` in the log of `worker`."""
    if column.kind == "number":
        return f"{{:{column.log}}}".format
    if worker != 0:  # one worker's view of all the others is enough
        return lambda _: ""
    pair = f"{{}}:{{:{column.log}}}".format
    return lambda values: " ".join([pair(w, value) for w, value in values.items()])
