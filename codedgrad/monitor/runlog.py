"""A recorded run: every column of every worker's log, as arrays."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.monitor.report import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBERS = (
    *(
        "seconds",
        "done",
        "begin_s",
        "step_s",
        "compute_s",
        "send_s",
        "help_s",
        "wait_s",
    ),
    *("backpressure_s", "decode_s", "apply_s", "redundant_passes", "abandoned"),
    *("fast_forwarded", "loss"),
)
_SLOW = 1.5  # times the step's median


@dataclass(frozen=True)
class RunLog:
    """Columns of `CodedGradient(..., log=FOLDER)`.

    Attributes:
        name: the folder.
        steps: int [steps], their numbers.
        columns: float64 [steps, workers] by name; NaN where a worker has no line.
        arrivals_s: [steps, workers], as worker 0 saw them; NaN: absent.
        estimates: of the workers that wrote `RunRecord.save_estimates`.
    """

    name: str
    steps: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    arrivals_s: NDArray[np.float64]
    estimates: list[Estimate] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """Number of workers."""
        return int(self.arrivals_s.shape[1])

    @property
    def loss(self) -> NDArray[np.float64]:
        """[steps]: of the batch; the same on every worker."""
        return np.asarray(np.nanmax(self.columns["loss"], axis=1))

    def elapsed_s(self) -> NDArray[np.float64]:
        """[steps]: from the run's begin to each step's end."""
        ends = np.nanmax(self.columns["begin_s"] + self.columns["step_s"], axis=1)
        return np.asarray(ends - np.nanmin(self.columns["begin_s"]))

    def measured_s(self) -> NDArray[np.float64]:
        """[steps]: median over the workers that were not fast-forwarded."""
        forwarded = self.columns["fast_forwarded"] > 0
        times = np.where(forwarded, np.nan, self.columns["step_s"])
        return np.asarray(np.nanmedian(times, axis=1))

    def everybody_s(self) -> NDArray[np.float64]:
        """[steps]: if all had been waited for, the slowest one's own work."""
        return np.asarray(np.nanmax(self.columns["seconds"], axis=1))

    def bound_s(self) -> NDArray[np.float64]:
        """[steps]: a perfect division of the work, n / sum(1 / seconds)."""
        seconds = self.columns["seconds"]
        count = (~np.isnan(seconds)).sum(axis=1)
        return np.asarray(count / np.nansum(1.0 / seconds, axis=1))

    def late_share(self) -> NDArray[np.float64]:
        """[workers]: share of the steps in which a worker was slow or left behind."""
        seconds = self.columns["seconds"]
        median = np.nanmedian(seconds, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            slow = np.isnan(seconds) | (seconds > _SLOW * median)
        return np.asarray(slow.mean(axis=0))


def read_run(folder: str | Path) -> RunLog:
    """Read the folder of a run.

    Raises:
        ConfigError: it is no such folder, or a line of it is broken.
    """
    folder = Path(folder)
    parts = sorted(folder.glob("worker-*.csv"))
    if not parts:
        raise ConfigError(
            f"{folder} holds no worker-*.csv; wanted the folder that was given as "
            f"CodedGradient(..., log=FOLDER)"
        )
    rows = [row for part in parts for row in _rows(part)]
    if not rows:
        raise ConfigError(f"{folder}: the run has recorded no step")
    numbers = sorted({row["step"] for row in rows})
    place = {step: i for i, step in enumerate(numbers)}
    workers = 1 + max(row["worker"] for row in rows)
    shape = (len(numbers), workers)
    columns = {name: np.full(shape, np.nan) for name in _NUMBERS}
    arrivals = np.full(shape, np.nan)
    for row in rows:
        at = place[row["step"]], row["worker"]
        for name in _NUMBERS:
            columns[name][at] = row[name]
        for worker, seconds in row["arrivals"]:
            arrivals[at[0], worker] = seconds
    estimates = [e for p in sorted(folder.glob("decoder-*.csv")) for e in _estimates(p)]
    return RunLog(str(folder), np.array(numbers), columns, arrivals, estimates)


def _estimates(path: Path) -> list[Estimate]:
    out: list[Estimate] = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                step, bucket, *errors = (row[name] for name in Estimate._fields)
                out.append(Estimate(int(step), int(bucket), *map(float, errors)))
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(path, reader.line_num, error) from error
    return out


def _broken(path: Path, line: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}, line {line}: {error!r}; the file is cut short or not a recording of "
        f"this version"
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                line: dict[str, Any] = {name: float(row[name]) for name in _NUMBERS}
                line["step"], line["worker"] = int(row["step"]), int(row["worker"])
                pairs = [pair.split(":") for pair in (row["arrivals"] or "").split()]
                line["arrivals"] = [(int(w), float(t)) for w, t in pairs]
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(path, reader.line_num, error) from error
            out.append(line)
    return out
