"""TensorBoard files of a run. This module imports tensorboard; the package does not."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import missing_extra
from codedgrad.monitor.report import COLUMNS

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise missing_extra("tensorboard", error) from error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from codedgrad.monitor.columns import Column
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport


class TensorBoardMonitor:
    """Writes the reports of one worker, usually of worker 0."""

    def __init__(self, log_dir: str | Path, workers: int | None = None) -> None:
        """Open the files.

        Args:
            log_dir: The folder for `tensorboard --logdir`; it is created if needed.
            workers: The number of workers. None stands for the highest worker whose
                rows have arrived so far, plus one.
        """
        self._writer = SummaryWriter(str(log_dir))
        self._workers = workers or 0
        self._estimates = False  # whether any step so far was estimated

    def step(
        self,
        report: StepReport,
        lr: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write the scalars of a step.

        They are train/loss and train/lr; straggler/step_s, wait_s and backpressure_s in
        seconds; straggler/redundant_passes; and straggler/missing, the number of
        workers whose own rows were not there when the step was over. From the first
        estimate on there is decoder/settled, the number of own slices that were
        estimated, and in steps with estimates decoder/missing and
        decoder/predicted_error and decoder/predicted_noise. decoder/true_error
        follows once it is known, under the
        number of the step to which it belongs.

        Args:
            report: The report of the step.
            lr: The learning rate, if it is to be written.
            metrics: Those of the step (`coded.metrics`), each written as train/ and its
                name.
        """
        self._workers = max(self._workers, 1 + max(report.arrivals_s, default=-1))
        self._estimates = self._estimates or report.settled > 0
        for column in COLUMNS:
            if column.tag is not None:
                for step, value in self._points(column, report).items():
                    self._writer.add_scalar(column.tag, value, step)
        if lr is not None:
            self._writer.add_scalar("train/lr", lr, report.step)
        for name, value in (metrics or {}).items():
            self._writer.add_scalar(f"train/{name}", value, report.step)

    def _points(self, column: Column, report: StepReport) -> dict[int, float]:
        """Return the values of a column that are to be written, by step."""
        value = getattr(report, column.name)
        if column.kind == "by step":
            values: dict[int, list[float]] = {}
            for step, one in value:
                values.setdefault(step, []).append(one)
            return {step: statistics.fmean(some) for step, some in values.items()}
        if column.kind == "by worker":
            return {report.step: self._workers - len(value)}
        # A count of estimates may be 0, an error of none has no meaning.
        exists = self._estimates if column.name == "settled" else report.settled > 0
        return {report.step: value} if exists or not column.of_estimates else {}

    def picture(self, record: RunRecord, workers: int) -> None:
        """Write the heat map of arrivals as an image, workers x steps.

        Raises:
            EnvironmentSetupError: There is no matplotlib.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from codedgrad.monitor.plots import draw_arrivals  # says so if it is missing

        if not record.reports:
            return
        figure = Figure(figsize=(10, 3.4), dpi=100)
        canvas: Any = FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained")
        draw_arrivals(figure, record.arrivals(workers), record.reports[0].step)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
        last = record.reports[-1].step
        self._writer.add_image("straggler/arrivals", pixels, last, dataformats="HWC")

    def close(self) -> None:
        """Write what is left and close the files."""
        self._writer.close()
