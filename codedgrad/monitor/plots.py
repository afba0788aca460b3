"""Pictures of a run. Imports matplotlib, so it is not imported by the package."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from codedgrad.lab.traces import Log
    from codedgrad.monitor.report import RunRecord

_COLUMNS = 600  # more steps than this share columns
_ABSENT = "#E69F00"  # orange on blues: told apart by all kinds of colour vision
_PERCENTILE = 99.0  # of the times: one stall must not turn all the rest white


def plot_arrivals(
    record: RunRecord,
    workers: int,
    path: Path,
    title: str = "When the workers' gradients arrived",
) -> None:
    """Draw who arrived when, workers x steps, as a PNG.

    Colour is the time from the start of the recording worker's step to the arrival
    of each worker's own row; a row that was there before counts as 0. Absent: not
    there when the step was decoded without it. On the right, in how many steps.

    Args:
        record: of one worker, usually worker 0.
        workers: n.
        path: where to write.
        title: above the picture.

    Raises:
        ConfigError: the record holds no steps.
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
    """Draw arrival times [steps, workers] in seconds into `figure`; NaN is absent."""
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


def plot_log(log: Log, path: Path, title: str = "") -> None:
    """Draw a log, workers x steps: time / the step's median; and its distribution."""
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
    """[columns, workers]: the latest of each group of steps; NaN if any is absent."""
    group = math.ceil(len(times) / _COLUMNS)
    padding = -len(times) % group
    padded = np.concatenate([times, np.repeat(times[-1:], padding, axis=0)])
    return padded.reshape(-1, group, times.shape[1]).max(axis=1), group


def _unit(times: NDArray[np.float64]) -> tuple[float, str]:
    known = times[~np.isnan(times)]
    if known.size and float(np.percentile(known, _PERCENTILE)) >= 1.0:
        return 1.0, "s"
    return 1e3, "ms"


def _draw(axes: Any, values: NDArray[np.float64], first: int, group: int) -> Any:
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
