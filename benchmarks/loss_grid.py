"""The grid of bench_time_to_loss, and the curves of what has been run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from loss_arrivals import SCENARIOS
from loss_tasks import TASKS
from loss_training import EVERY, Cell

T_95 = {5: 2.776, 2: 12.71, 1: 0.0}  # Student's, two-sided, by number of seeds

PARTITIONS = ("fresh IID", "fixed IID", "non-IID")
EXACT = ("synchronous", "exact coded")
INEXACT = ("zero", "rescale", "momentum", "stale", "saga", "online_ls", "learned")
FEW = ("rescale", "stale", "online_ls", "learned")  # for the text model


def grid() -> list[Cell]:
    """Return the cells to run, the most telling ones first."""
    cells = [Cell(t, p, "any", "exact") for t in TASKS for p in PARTITIONS]
    order = [("cnn", "non-IID"), ("convex", "non-IID"), ("text", "non-IID")]
    order += [(t, p) for p in PARTITIONS[1::-1] for t in TASKS]
    first = "one always 10 x"
    for task, partition in order:
        for scenario in (first, *(s for s in SCENARIOS if s != first)):
            every = partition == "non-IID" and (task == "convex" or scenario == first)
            methods = FEW if task == "text" or not every else INEXACT
            cells += [Cell(task, partition, scenario, m) for m in methods]
    return cells


def curve(found: dict[str, Any], cell: Cell, clock: str, clocks: Any) -> dict[str, Any]:
    """Return the losses and the clock, both [seeds, points], of one method.

    `clock` names one of the step times in the `clocks` of every seed.
    """
    loss = np.asarray(found[cell.key]["loss"])
    points = loss.shape[1]
    steps = (points - 1) * EVERY
    times = np.stack(
        [
            np.concatenate([[0.0], np.cumsum(c[clock][:steps])])[::EVERY]
            for c in clocks[: len(loss)]
        ]
    )
    return {"loss": loss, "clock": times, "accuracy": found[cell.key]["accuracy"]}


def curves(
    found: dict[str, Any], task: str, partition: str, scenario: str, clocks: Any
) -> dict[str, dict[str, Any]]:
    """Return the curves of every method that has been run."""
    out = {}
    exact = Cell(task, partition, "any", "exact")
    if exact.key in found:
        for method in EXACT:
            out[method] = curve(found, exact, method, clocks)
    for method in INEXACT:
        cell = Cell(task, partition, scenario, method)
        if cell.key in found:
            out[method] = curve(found, cell, "settled", clocks)
    return out


def reached(one: dict[str, Any], goal: np.ndarray) -> np.ndarray:
    """Return the clock [seeds] when the loss is first at the seed's goal, or inf."""
    hit = one["loss"] <= goal[: len(one["loss"]), None]
    at = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
    times = one["clock"][np.arange(len(at)), at]
    return np.where(at >= 0, times, np.inf)


def interval(values: Any) -> tuple[float, float]:
    """Return the mean and half of the 95 % confidence interval, over the seeds."""
    v = np.asarray(values, float)
    v = v[np.isfinite(v)]
    if len(v) < 2:
        return (float(v[0]) if len(v) else math.nan), math.nan
    half = T_95.get(len(v), 3.2) * v.std(ddof=1) / math.sqrt(len(v))
    return float(v.mean()), float(half)
