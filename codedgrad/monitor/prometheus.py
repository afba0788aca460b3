"""Metrics for Prometheus' node exporter: a text file, no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codedgrad.monitor.report import StepReport

_TOTALS = {
    "step_seconds": "step_s",
    "compute_seconds": "compute_s",
    "wait_seconds": "wait_s",
    "help_seconds": "help_s",
    "backpressure_seconds": "backpressure_s",
    "decode_seconds": "decode_s",
    "redundant_passes": "redundant_passes",
    "abandoned_passes": "abandoned",
    "fast_forwarded_steps": "fast_forwarded",
    "settled_slices": "settled",
    "refused_rows": "refused",
}
# Sums over slices: of the settled ones, and of those whose true error is known.
_ERRORS = ("predicted_error", "true_error", "true_error_slices")


class PrometheusFile:
    """Totals since the start, rewritten as a whole every few steps.

    Point the node exporter's `--collector.textfile.directory` at the folder. Names end
    in .prom; a file is replaced in one move, so that no half of it is ever read.
    """

    def __init__(self, path: str | Path, worker: int, every: int = 10) -> None:
        """Write `path`, a different one for each worker of a machine."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._labels = f'{{worker="{worker}"}}'
        self._every = every
        self._totals = dict.fromkeys((*_TOTALS, *_ERRORS), 0.0)
        self._steps = 0
        self._last: StepReport | None = None

    def step(self, report: StepReport) -> None:
        """Count one step."""
        for name, attribute in _TOTALS.items():
            self._totals[name] += float(getattr(report, attribute))
        self._totals["predicted_error"] += report.settled * report.predicted_error
        self._totals["true_error"] += sum(error for _, error in report.true_errors)
        self._totals["true_error_slices"] += len(report.true_errors)
        self._steps += 1
        self._last = report
        if self._steps % self._every == 0:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        lines = []
        values = {"steps": float(self._steps), **self._totals}
        for name, value in values.items():
            lines.append(f"# TYPE codedgrad_{name}_total counter")
            lines.append(f"codedgrad_{name}_total{self._labels} {value:.9g}")
        if self._last is not None:
            lines.append("# TYPE codedgrad_loss gauge")
            lines.append(f"codedgrad_loss{self._labels} {self._last.loss:.9g}")
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text("\n".join(lines) + "\n")
        scratch.replace(self._path)
