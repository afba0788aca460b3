"""The reader of a run's log: every column of every worker, as arrays."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.monitor.record import Estimate
from codedgrad.monitor.report import LOGGED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_STEP, *_OTHERS = LOGGED
_NUMBERS = ("seconds", "done", *(c.heading for c in _OTHERS if c.kind == "number"))
_BY_WORKER = {c.heading: c.name for c in _OTHERS if c.kind == "by worker"}
_NEW = {c.heading for c in _OTHERS if not c.in_old_logs}
_SLOW = 1.5  # a worker is slow above this many times the step's median


@dataclass(frozen=True)
class RunLog:
    """The log that `CodedGradient(..., log=FOLDER)` wrote.

    Attributes:
        name: The folder.
        steps: The numbers of the steps, int [steps].
        columns: The columns of the log by name, float64 [steps, workers]. They are NaN
            where a worker has no line.
        by_worker: The columns "by worker" by name, as worker 0 saw them, float64
            [steps, workers]. They are NaN where worker 0 has no value.
        estimates: The estimates of the workers that wrote
            `RunRecord.save_estimates` into the folder.
    """

    name: str
    steps: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    by_worker: dict[str, NDArray[np.float64]]
    estimates: list[Estimate] = field(default_factory=list)

    @property
    def arrivals_s(self) -> NDArray[np.float64]:
        """The times at which own rows arrived at worker 0, [steps, workers]."""
        return self.by_worker["arrivals_s"]

    @property
    def workers(self) -> int:
        """The number of workers."""
        return int(self.arrivals_s.shape[1])

    @property
    def loss(self) -> NDArray[np.float64]:
        """The loss of the batch [steps], which is the same on every worker.

        It is NaN in the log of a drop-in, which sees no loss.
        """
        return np.asarray(np.fmax.reduce(self.columns["loss"], axis=1))

    def elapsed_s(self) -> NDArray[np.float64]:
        """Return the time [steps] from the begin of the run to each step's end."""
        ends = np.nanmax(self.columns["begin_s"] + self.columns["step_s"], axis=1)
        return np.asarray(ends - np.nanmin(self.columns["begin_s"]))

    def measured_s(self) -> NDArray[np.float64]:
        """Return the duration of each step [steps].

        It is the median over the workers that were not fast-forwarded.
        """
        forwarded = self.columns["fast_forwarded"] > 0
        times = np.where(forwarded, np.nan, self.columns["step_s"])
        return np.asarray(np.nanmedian(times, axis=1))

    def everybody_s(self) -> NDArray[np.float64]:
        """Return the time [steps] that the slowest worker's own passes took.

        A step that waits for everybody takes at least this long.
        """
        return np.asarray(np.nanmax(self.columns["seconds"], axis=1))

    def bound_s(self) -> NDArray[np.float64]:
        """Return the duration [steps] under a perfect division of the work.

        With s_i seconds for the own passes of worker i it is n / sum_i (1 / s_i).
        """
        seconds = self.columns["seconds"]
        count = (~np.isnan(seconds)).sum(axis=1)
        return np.asarray(count / np.nansum(1.0 / seconds, axis=1))

    def late_share(self) -> NDArray[np.float64]:
        """Return the share of the steps in which a worker was late [workers].

        It was late if it was slow or if the step was over before it began.
        """
        seconds = self.columns["seconds"]
        median = np.nanmedian(seconds, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            slow = np.isnan(seconds) | (seconds > _SLOW * median)
        return np.asarray(slow.mean(axis=0))


def read_run(folder: str | Path) -> RunLog:
    """Read the folder of a run.

    Raises:
        ConfigError: The folder holds no log, or a line of it is broken.
    """
    folder = Path(folder)
    parts = sorted(folder.glob("worker-*.csv"))
    if not parts:
        raise ConfigError(
            f"{folder} holds no worker-*.csv; wanted the folder that was given as "
            f"CodedGradient(..., log=FOLDER)"
        )
    lines = [line for part in parts for line in _lines(part)]
    if not lines:
        raise ConfigError(f"{folder}: the run has recorded no step")
    steps = sorted({line["step"] for line in lines})
    place = {step: i for i, step in enumerate(steps)}
    shape = (len(steps), 1 + max(line["worker"] for line in lines))
    columns = {name: np.full(shape, np.nan) for name in _NUMBERS}
    by_worker = {name: np.full(shape, np.nan) for name in _BY_WORKER.values()}
    for line in lines:
        i, worker = place[line["step"]], line["worker"]
        for name, values in columns.items():
            values[i, worker] = line[name]
        for heading, name in _BY_WORKER.items():
            for other, value in line[heading]:
                by_worker[name][i, other] = value
    estimates = [e for p in sorted(folder.glob("decoder-*.csv")) for e in _estimates(p)]
    return RunLog(str(folder), np.array(steps), columns, by_worker, estimates)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read one worker's log, a line at a time."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            # A cell is None where a line is cut short, and absent where the whole
            # column is; only columns that older versions did not write may be absent.
            for heading in _NEW.difference(row):
                row[heading] = "nan" if heading in _NUMBERS else ""
            try:
                line: dict[str, Any] = {name: float(row[name]) for name in _NUMBERS}
                line["step"], line["worker"] = int(row["step"]), int(row["worker"])
                line |= {heading: _pairs(row[heading]) for heading in _BY_WORKER}
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(path, reader.line_num, error) from error
            yield line


def _pairs(text: str | None) -> list[tuple[int, float]]:
    """Read `worker:value` pairs."""
    pairs = [pair.split(":") for pair in (text or "").split()]
    return [(int(worker), float(value)) for worker, value in pairs]


def _estimates(path: Path) -> list[Estimate]:
    out: list[Estimate] = []
    # Files of earlier versions know no noise.
    old = {n: Estimate._field_defaults[n] for n in ("noise", "true_noise")}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                step, bucket, *errors = (
                    row[n] if n in row or n not in old else old[n]
                    for n in Estimate._fields
                )
                out.append(Estimate(int(step), int(bucket), *map(float, errors)))
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(path, reader.line_num, error) from error
    return out


def _broken(path: Path, line: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}, line {line}: {error!r}; the file is cut short or not a recording of "
        f"this version"
    )
