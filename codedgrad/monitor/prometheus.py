"""Metrics for Prometheus' node exporter, in a text file; no server is needed.

This module imports prometheus_client, which writes the text; the package does not.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.errors import missing_extra
from codedgrad.monitor.report import COLUMNS

try:
    from prometheus_client import CollectorRegistry, write_to_textfile
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise missing_extra("prometheus", error) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from codedgrad.monitor.columns import Column, Metric
    from codedgrad.monitor.report import StepReport

log = logging.getLogger("codedgrad")

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
        self._worker = str(worker)
        self._every = every
        self._totals = {metric.full_name: 0.0 for _, metric in _COUNTERS}
        self._steps = 0
        self._last: StepReport | None = None
        self._registry = CollectorRegistry()  # its own, not that of the process
        self._registry.register(self)
        self._warned = False

    def step(self, report: StepReport) -> None:
        """Count a step."""
        for column, metric in _COUNTERS:
            self._totals[metric.full_name] += _value(column, metric, report)
        self._steps += 1
        self._last = report
        if self._steps % self._every == 0:
            self.write()

    def write(self) -> None:
        """Write the file now; a file that cannot be written is told once."""
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            if not self._warned:
                log.warning("the metrics %s cannot be written: %s", self._path, error)
            self._warned = True

    def collect(self) -> Iterator[Family]:
        """Yields the metrics; this is what prometheus_client asks for."""
        for _, metric in _COUNTERS:
            total = self._totals[metric.full_name]
            family = CounterMetricFamily(
                metric.full_name, metric.help, labels=["worker"]
            )
            family.add_metric([self._worker], total)
            yield family
        if self._last is None:
            return
        for column, metric in _GAUGES:
            value = _value(column, metric, self._last)
            gauge = GaugeMetricFamily(metric.full_name, metric.help, labels=["worker"])
            gauge.add_metric([self._worker], value)
            yield gauge


def _value(column: Column, metric: Metric, report: StepReport) -> float:
    if metric.value is not None:
        return metric.value(report)
    return float(getattr(report, column.name))
