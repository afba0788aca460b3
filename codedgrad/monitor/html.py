"""A run as one HTML page that needs neither a network nor another file."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from codedgrad.monitor.plots import draw_arrivals
from codedgrad.monitor.record import judged
from codedgrad.monitor.report import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.monitor.runlog import RunLog

_BLUE, _RED, _GREEN, _ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { width: 100%; height: auto; } table { border-collapse: collapse; }
td, th { padding: .2rem .9rem .2rem 0; text-align: right; } th { font-weight: 600; }
td:first-child, th:first-child { text-align: left; } .big { font-size: 1.3rem; }
"""


def write_report(run: RunLog, path: Path) -> None:
    """Write the page of `run`."""
    measured, waited = float(run.measured_s().mean()), float(run.everybody_s().mean())
    bound = float(run.bound_s().mean())
    figures = [
        ("Who arrived when", _figure(lambda f: draw_arrivals(f, run.arrivals_s), 3.4)),
        ("How long a step took", _figure(lambda f: _step_times(f, run))),
        ("Who was late", _figure(lambda f: _late(f, run))),
        ("What the workers did", _figure(lambda f: _phases(f, run))),
    ]
    if not np.isnan(run.loss).all():  # as in the log of a drop-in, which sees no loss
        figures.append(("Loss against time", _figure(lambda f: _loss(f, run))))
    body = "".join(
        f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">\n'
        for title, data in figures
    )
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>codedgrad: {html.escape(run.name)}
</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(run.name)}</h1>
<p class="big">{len(run.steps)} steps of {1e3 * measured:.1f} ms on {run.workers}
workers. Waiting for everybody: {1e3 * waited:.1f} ms ({waited / measured:.2f} x);
a perfect division of the work: {1e3 * bound:.1f} ms.</p>
<p>{html.escape(_kind(run))}</p>
{_table(run)}
{body}{_decoder(run)}</body></html>
"""
    path.write_text(page, encoding="utf-8")


def _kind(run: RunLog) -> str:
    """Say whether it is always the same worker that is late."""
    late = run.late_share()
    if float(late.max()) < 0.02:
        return "Nobody was late: there is nothing to gain in this job."
    often = np.flatnonzero(late >= 0.5)
    if len(often):
        names = ", ".join(map(str, often))
        return f"Persistent: worker(s) {names} late in most steps. Look at the machine."
    return "Roaming: the late worker changes from step to step."


def _table(run: RunLog) -> str:
    """Show the columns that have a title for the page, one line per worker."""
    shown = [
        column
        for column in COLUMNS
        if column.page is not None and not np.isnan(run.columns[column.heading]).all()
    ]
    rows = []
    for worker, late in enumerate(run.late_share()):
        cells = [str(worker), f"{100 * late:.0f} %"]
        for column in shown:
            values = run.columns[column.heading][:, worker]
            if column.unit == "s":
                cells.append(f"{1e3 * float(np.nanmean(values)):.2f} ms")
            else:
                cells.append(f"{float(np.nansum(values)):.0f}")
        rows.append("<tr>" + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
    head = ("worker", "late", *(column.page for column in shown))
    titles = "".join(f"<th>{x}</th>" for x in head)
    return f"<table><tr>{titles}</tr>{''.join(rows)}</table>"


def _decoder(run: RunLog) -> str:
    """Return the section on estimates; it is empty if the folder holds none."""
    if not run.estimates:
        return ""
    figures = judged(run.estimates)
    steps = len({e.step for e in run.estimates})
    text = f"""{figures["settled"]} slices of {steps} steps were estimated, with
{100 * (figures["missing"] or 0.0):.0f} % of the batch missing; expected error
{figures["predicted"]:.3g} (|estimate - sum|<sup>2</sup> / |sum|<sup>2</sup>)."""
    if figures["known"]:
        ratio = figures["calibration"]
        expected = f" ({ratio:.2f} x as much was expected)" if ratio else ""
        text += f""" Of {figures["known"]} the late rows came: true error
{figures["true"]:.3g}{expected}, above its bound in
{100 * (figures["exceeded"] or 0.0):.1f} %."""
    if figures["noise"] is not None:
        text += f""" They were expected to add {100 * figures["noise"]:.0f} % to the
batch's own sampling noise."""
    title = "What was estimated"
    data = _figure(lambda f: _errors(f, run))
    return (
        f"<h2>{title}</h2><p>{text}</p>"
        f'<img alt="{title}" src="data:image/png;base64,{data}">\n'
    )


def _figure(draw: Callable[[Figure], None], height: float = 3.0) -> str:
    """Draw a figure; return it as a PNG in base64."""
    figure = Figure(figsize=(10, height), dpi=110)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    draw(figure)
    file = io.BytesIO()
    with mpl.rc_context({"savefig.bbox": None}):
        figure.savefig(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _step_times(figure: Figure, run: RunLog) -> None:
    axes = figure.subplots()
    for values, label, color in (
        (run.everybody_s(), "waiting for everybody", _RED),
        (run.measured_s(), "measured", _BLUE),
        (run.bound_s(), "perfect division", _GREEN),
    ):
        axes.plot(run.steps, 1e3 * values, label=label, color=color, lw=1.0)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.18))


def _late(figure: Figure, run: RunLog) -> None:
    axes = figure.subplots()
    late = run.late_share()
    colors = [_ORANGE if share >= 0.5 else _BLUE for share in late]
    axes.bar(np.arange(run.workers), 100 * late, color=colors)
    axes.set_xlabel("worker (orange: persistent)")
    axes.set_ylabel("% of steps")


def _phases(figure: Figure, run: RunLog) -> None:
    axes = figure.subplots()
    below = np.zeros(run.workers)
    wait = run.columns["wait_s"] - run.columns["help_s"]
    for values, label, color in (
        (run.columns["compute_s"], "compute", _BLUE),
        (run.columns["help_s"], "help", _GREEN),
        (wait, "wait", "#BBBBBB"),
        (run.columns["backpressure_s"], "window", _RED),
        (run.columns["apply_s"], "apply", "#CC79A7"),
    ):
        mean = 1e3 * np.nan_to_num(np.nanmean(values, axis=0))
        axes.bar(np.arange(run.workers), mean, bottom=below, label=label, color=color)
        below = below + mean
    axes.set_xlabel("worker")
    axes.set_ylabel("ms per step")
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.18))


def _loss(figure: Figure, run: RunLog) -> None:
    axes = figure.subplots()
    axes.plot(run.elapsed_s(), run.loss, color=_BLUE, lw=1.0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("loss")


def _errors(figure: Figure, run: RunLog) -> None:
    axes = figure.subplots()
    steps = np.array([e.step for e in run.estimates])
    numbers, place = np.unique(steps, return_inverse=True)
    for name, label, color, mark in (
        ("truth", "true", _BLUE, "o"),
        ("predicted", "expected", _ORANGE, "x"),
    ):
        values = np.array([getattr(e, name) for e in run.estimates])
        known = ~np.isnan(values)
        count = np.bincount(place[known], minlength=len(numbers))
        total = np.bincount(place[known], values[known], minlength=len(numbers))
        there = count > 0
        mean = total[there] / count[there]
        axes.plot(numbers[there], mean, mark, label=label, color=color, ms=3.0)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("relative squared error")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.18))
