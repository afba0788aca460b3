"""Metrics for Prometheus' node exporter, in a text file; no server is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.monitor.report import COLUMNS

if TYPE_CHECKING:
    from codedgrad.monitor.columns import Column, Metric
    from codedgrad.monitor.report import StepReport

_METRICS = [(column, metric) for column in COLUMNS for metric in column.metrics]
_COUNTERS = [pair for pair in _METRICS if pair[1].kind == "counter"]
_GAUGES = [pair for pair in _METRICS if pair[1].kind == "gauge"]


class PrometheusFile:
    """Writes totals since the start of the run every few steps.

    The option `--collector.textfile.directory` of the node exporter must point at the
    file's folder, and the name of the file must end in `.prom`. The file is replaced in
    one move, so nobody ever reads half of it.
    """

    def __init__(self, path: str | Path, worker: int, every: int = 10) -> None:
        """Prepare the file and create its folder.

        Args:
            path: The file; each worker of a machine needs one of its own.
            worker: The number of the worker, which labels the metrics.
            every: The number of steps from one writing to the next.
        """
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._labels = f'{{worker="{worker}"}}'
        self._every = every
        self._totals = {metric.full_name: 0.0 for _, metric in _COUNTERS}
        self._steps = 0
        self._last: StepReport | None = None

    def step(self, report: StepReport) -> None:
        """Count a step."""
        for column, metric in _COUNTERS:
            self._totals[metric.full_name] += _value(column, metric, report)
        self._steps += 1
        self._last = report
        if self._steps % self._every == 0:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        lines = []
        for name, total in self._totals.items():
            lines += self._metric(name, "counter", total)
        if self._last is not None:
            for column, metric in _GAUGES:
                value = _value(column, metric, self._last)
                lines += self._metric(metric.full_name, "gauge", value)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text("\n".join(lines) + "\n")
        scratch.replace(self._path)

    def _metric(self, name: str, kind: str, value: float) -> list[str]:
        return [f"# TYPE {name} {kind}", f"{name}{self._labels} {value:.9g}"]


def _value(column: Column, metric: Metric, report: StepReport) -> float:
    if metric.value is not None:
        return metric.value(report)
    return float(getattr(report, column.name))
