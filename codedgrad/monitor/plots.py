"""Pictures of a run. This module imports matplotlib; the package does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from codedgrad.errors import ConfigError, missing_extra

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise missing_extra("plots", error) from error

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from codedgrad.monitor.record import RunRecord

_COLUMNS = 600  # a picture has at most so many; more steps share columns
_ABSENT = "#E69F00"  # orange among blues: all kinds of colour vision tell them apart
# The darkest blue is this percentile of the times: otherwise a single stall would turn
# everything else white.
_PERCENTILE = 99.0


class StepTimes(Protocol):
    """A log of the workers' own passes, such as `codedgrad.lab.traces.Log`."""

    @property
    def source(self) -> str:
        """The file of the log."""

    @property
    def steps(self) -> int:
        """The number of steps."""

    @property
    def size(self) -> int:
        """The number of workers."""

    def ratios(self) -> NDArray[np.float64]:
        """Return time / the step's median, [steps, workers]; NaN: took no part."""


def plot_arrivals(
    record: RunRecord,
    workers: int,
    path: Path,
    title: str = "When the workers' gradients arrived",
) -> None:
    """Draw when each worker's row arrived, workers x steps, as a PNG.

    The colour is the time from the start of the recording worker's step to the arrival
    of the own row of each worker; a row that was there before counts as 0. Orange marks
    rows that were absent when the step was decoded without them. Bars on the right show
    in how many steps that was so.

    Args:
        record: The record of one worker, usually of worker 0.
        workers: The number of workers.
        path: The file to write.
        title: The line above the picture.

    Raises:
        ConfigError: The record holds no steps.
    """
    times = record.arrivals(workers)
    if len(times) == 0:
        raise ConfigError(
            "the record holds no steps, there is nothing to plot; call this after "
            "training steps"
        )
    figure = Figure(figsize=(9, min(12.0, max(2.6, 1.7 + 0.3 * workers))), dpi=150)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    draw_arrivals(figure, times, record.reports[0].step)
    figure.suptitle(title)
    with mpl.rc_context({"savefig.bbox": None}):
        figure.savefig(path, format="png")


def draw_arrivals(figure: Figure, times: NDArray[np.float64], first: int = 0) -> None:
    """Draw arrival times into `figure`.

    Args:
        figure: An empty figure.
        times: The arrival times in seconds [steps, workers]; NaN is absent.
        first: The number of the first step.
    """
    workers = times.shape[1]
    absent = np.isnan(times).mean(axis=0)
    shown, group = _grouped(times)
    scale, unit = _unit(shown)
    left, right = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": [8, 1.2]}
    )
    image = _draw(left, shown.T * scale, first, group)
    left.set_xlabel("step" if group == 1 else f"step ({group} per column, the latest)")
    left.set_ylabel("worker")
    left.yaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.barh(np.arange(workers), 100.0 * absent, color=_ABSENT, height=0.7)
    right.set_xlabel("absent (% of steps)")
    right.set_xlim(0, max(5.0, 105.0 * float(absent.max())))
    right.tick_params(axis="y", left=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.colorbar(
        image, ax=right, label=f"arrival after the step's start ({unit})", extend="max"
    )
    figure.legend(
        handles=[Patch(color=_ABSENT, label="absent when the step was decoded")],
        loc="outside lower left",
        frameon=False,
    )


def plot_log(log: StepTimes, path: Path, title: str = "") -> None:
    """Draw a log of straggling as a PNG.

    On the left stands time / the step's median, workers x steps, on the right its
    distribution over all workers and over the slowest of each step.
    """
    ratios = log.ratios()
    shown, group = _grouped(ratios)
    figure = Figure(figsize=(11, 4), dpi=150)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    image = _draw(left, shown.T, 0, group)
    left.set_xlabel("step" if group == 1 else f"step ({group} per column, the slowest)")
    left.set_ylabel("worker")
    figure.colorbar(image, ax=left, label="time / the step's median", extend="max")
    values = np.sort(ratios[~np.isnan(ratios)])
    late = 1.0 - np.arange(len(values)) / len(values)
    right.loglog(values, late, color="#0072B2", label="a worker")
    slowest = np.sort(np.nanmax(ratios, axis=1))
    share = 1.0 - np.arange(len(slowest)) / len(slowest)
    right.loglog(slowest, share, color="#D55E00", label="the slowest of a step")
    right.set_xlabel("time / the step's median")
    right.set_ylabel("share that takes longer")
    right.grid(visible=True, which="major", alpha=0.3)
    right.legend(frameon=False)
    figure.suptitle(title or f"{log.source}: {log.steps} steps, {log.size} workers")
    with mpl.rc_context({"savefig.bbox": None}):
        figure.savefig(path, format="png")


def _grouped(times: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Shrink times [steps, workers] to [columns, workers] for a picture.

    Returns:
        For each group of neighbouring steps the largest time, NaN if one is absent; and
        the number of steps in a group.
    """
    group = math.ceil(len(times) / _COLUMNS)
    padding = -len(times) % group
    padded = np.concatenate([times, np.repeat(times[-1:], padding, axis=0)])
    return padded.reshape(-1, group, times.shape[1]).max(axis=1), group


def _unit(times: NDArray[np.float64]) -> tuple[float, str]:
    """Choose a unit for times in seconds: its factor and its name."""
    known = times[~np.isnan(times)]
    if known.size and float(np.percentile(known, _PERCENTILE)) >= 1.0:
        return 1.0, "s"
    return 1e3, "ms"


def _draw(axes: Any, values: NDArray[np.float64], first: int, group: int) -> Any:
    """Draw values [workers, columns] whose first column begins at step `first`."""
    blues = mpl.colormaps["Blues"](np.linspace(0.12, 1.0, 256))
    colors = LinearSegmentedColormap.from_list("arrivals", blues).with_extremes(
        bad=_ABSENT
    )
    known = values[~np.isnan(values)]
    top = float(np.percentile(known, _PERCENTILE)) if known.size else 1.0
    workers, columns = values.shape
    return axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="none",
        origin="upper",
        cmap=colors,
        vmin=0.0,
        vmax=max(top, 1e-9),
        extent=(first - 0.5, first - 0.5 + columns * group, workers - 0.5, -0.5),
    )
