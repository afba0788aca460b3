"""TensorBoard scalars of a run. Imports tensorboard, so not with the package."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import EnvironmentSetupError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise EnvironmentSetupError(
        f"TensorBoard cannot be loaded ({error}); `pip install tensorboard`"
    ) from error

if TYPE_CHECKING:
    from pathlib import Path

    from codedgrad.monitor.report import RunRecord, StepReport


class TensorBoardMonitor:
    """Writes the reports of one worker, usually worker 0."""

    def __init__(self, log_dir: str | Path, workers: int | None = None) -> None:
        """Write to `log_dir`, which is made if it does not exist.

        Args:
            log_dir: for `tensorboard --logdir`.
            workers: n; the highest worker heard of so far if None.
        """
        self._writer = SummaryWriter(str(log_dir))
        self._workers = workers or 0
        self._estimates = False  # of no step so far

    def step(self, report: StepReport, lr: float | None = None) -> None:
        """Write one step.

        train/loss, train/lr; straggler/step_s, wait_s, backpressure_s (seconds),
        straggler/redundant_passes, straggler/missing: workers whose own rows were not
        there when the step was over. Where steps are estimated also decoder/settled
        (own slices), missing, predicted_error, and true_error, of the step it belongs
        to, once it is known.
        """
        arrived = report.arrivals_s
        self._workers = max(self._workers, 1 + max(arrived, default=-1))
        scalars = {
            "train/loss": report.loss,
            "straggler/step_s": report.step_s,
            "straggler/wait_s": report.wait_s,
            "straggler/redundant_passes": report.redundant_passes,
            "straggler/backpressure_s": report.backpressure_s,
            "straggler/missing": self._workers - len(arrived),
        }
        if lr is not None:
            scalars["train/lr"] = lr
        self._estimates = self._estimates or report.settled > 0
        if self._estimates:
            scalars["decoder/settled"] = report.settled
        if report.settled:
            scalars["decoder/missing"] = report.missing
            scalars["decoder/predicted_error"] = report.predicted_error
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.step)
        errors: dict[int, list[float]] = {}
        for step, error in report.true_errors:
            errors.setdefault(step, []).append(error)
        for step, values in errors.items():
            mean = statistics.fmean(values)
            self._writer.add_scalar("decoder/true_error", mean, step)

    def picture(self, record: RunRecord, workers: int) -> None:
        """Write the heat map of arrivals, workers x steps, as an image."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from codedgrad.monitor.plots import draw_arrivals

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
        """Write what is left and close the file."""
        self._writer.close()
