"""Record a run's own log: seconds of compute, measured before the exchange."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from codedgrad.monitor.report import StepReport

_FLUSH_EVERY_S = 1.0  # what a killed worker may lose
COLUMNS = (
    *("step", "worker", "seconds", "done", "begin_s", "step_s", "compute_s"),
    *("send_s", "help_s", "wait_s", "backpressure_s", "decode_s", "apply_s"),
    *("redundant_passes", "abandoned", "fast_forwarded", "loss", "arrivals"),
)


class Recorder:
    """Writes FOLDER/worker-<rank>.csv, one worker's part; `read(FOLDER)` joins them.

    One line per step. `seconds` are of the worker's own required work. Where it was
    abandoned they are what it would have taken at the speed so far (`done`: the share
    that was done); of a step that was over before the worker began they are NaN. The
    other columns are those of `StepReport`; arrivals on worker 0 only.
    """

    def __init__(self, folder: str | Path, worker: int) -> None:
        """Make the folder; every worker writes a file of its own.

        Raises:
            ConfigError: the folder cannot be written, or holds another run.
        """
        path = Path(folder) / f"worker-{worker}.csv"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ConfigError(
                f"{path} exists: this folder holds the log of another run; name a new "
                f"one or delete it"
            ) from None
        except OSError as error:
            raise ConfigError(f"the log {path} cannot be written: {error}") from error
        self._worker = worker
        self._lines = [",".join(COLUMNS) + "\n"]
        self.flush()

    def step(self, report: StepReport, done: float) -> None:
        """Add a line; `done`: share of the own work that was done."""
        r = report
        own_s = r.compute_s / done if done > 0.0 else r.compute_s  # then: at least
        seconds = float("nan") if r.fast_forwarded else own_s
        arrivals = ""
        if self._worker == 0:
            arrivals = " ".join(f"{w}:{t:.6g}" for w, t in r.arrivals_s.items())
        self._lines.append(
            f"{r.step},{self._worker},{seconds:.6g},{done:.3g},{r.begin_s:.6f},"
            f"{r.step_s:.6g},{r.compute_s:.6g},{r.send_s:.6g},{r.help_s:.6g},"
            f"{r.wait_s:.6g},{r.backpressure_s:.6g},{r.decode_s:.6g},{r.apply_s:.6g},"
            f"{r.redundant_passes},{int(r.abandoned)},{int(r.fast_forwarded)},"
            f"{r.loss:.6g},{arrivals}\n"
        )
        if time.monotonic() - self._flushed >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Hand what there is to the operating system."""
        self._file.writelines(self._lines)
        self._file.flush()
        self._lines.clear()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the rest; again: nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()
