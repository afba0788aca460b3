"""Fits of exchange costs to the live files of bench_scaling, and predicted steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from exchange_model import Fit, Network, Point, best_fit
from scaling_model import DEFAULT

from codedgrad.lab import simulate

if TYPE_CHECKING:
    from pathlib import Path

EXCHANGES = ("codedgrad", "mpi", "gloo", "nccl", "horovod")
_UNITS = {"B": 1.0, "KB": 1 << 10, "MB": 1 << 20}
_STEPS = 40  # simulated steps
_SETTLED = 20  # the first ones, in which the patience settles, are left out


@dataclass(frozen=True)
class Scenario:
    """One straggler scenario of one live file.

    Attributes:
        file: the live file.
        regime: "weak" or "strong".
        factor: how much slower the last worker is.
        units: seconds of a pass, by the name of the way in which it is known.
    """

    file: dict[str, Any]
    regime: str
    factor: float
    units: dict[str, float]


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the live files, in the order of their numbers of workers.

    Raises:
        SystemExit: there are no such files.
    """
    found = [json.loads(p.read_text()) for p in folder.glob("scaling-*.json")]
    found = [f for f in found if f.get("benchmark") == "bench_scaling"]
    if not found:
        raise SystemExit(f"{folder} holds no scaling-N.json of `bench_scaling.py live`")
    return sorted(found, key=lambda f: int(f["results"]["workers"]))


def size_of(name: str) -> float:
    """Return the bytes that a text means: 4096 for "4 KB"."""
    number, unit = name.split()
    return float(number) * _UNITS[unit]


def points(files: list[dict[str, Any]], method: str) -> list[Point]:
    """Return the measurements of one method's exchange."""
    return [
        Point(
            file["results"]["workers"],
            size_of(size),
            rows[method]["median_ms"] / 1e3,
            crowd_of(file),
        )
        for file in files
        for size, rows in file["results"].get("exchange", {}).items()
        if method in rows
    ]


def crowd_of(file: dict[str, Any]) -> float:
    """Return the number of workers that take turns on a core."""
    local = file["results"]["workers_of_a_machine"]
    return max(1.0, local / int(file["environment"]["cores"]))


def fits(files: list[dict[str, Any]]) -> dict[str, Fit]:
    """Fit the exchange of every method.

    codedgrad's is linear in the workers; of the others the better shape is taken.
    """
    if len({_machine(f) for f in files}) > 1:
        raise SystemExit("the live files come from different machines")
    found = {}
    for method in EXCHANGES:
        some = points(files, method)
        if len({(p.workers, p.bytes) for p in some}) > 3:
            found[method] = best_fit(some, linear=method == "codedgrad")
    return found


def _machine(file: dict[str, Any]) -> tuple[Any, Any]:
    return file["environment"]["cpu"], file["environment"]["cores"]


def check(files: list[dict[str, Any]], found: dict[str, Fit]) -> list[dict[str, Any]]:
    """Return every live median beside its predictions.

    They differ in the pass that they assume. `told`: the pass of `no_exchange` in the
    same file and regime, without a straggler. `carried`: the pass is known with the
    fewest workers only; what it took there above its nominal time is added everywhere.
    """
    rows: list[dict[str, Any]] = []
    for regime in ("weak", "strong"):
        some = [f for f in files if regime in f["results"]]
        if not some:
            continue
        first = some[0]["results"][regime]
        extra = _calm(first) - first["pass_ms"] / 1e3
        for file in some:
            cells = file["results"][regime]
            units = {
                "told": _calm(cells),
                "carried": cells["pass_ms"] / 1e3 + extra,
            }
            for name, cell in cells.items():
                if name.startswith("straggler_"):
                    factor = float(name.removeprefix("straggler_").removesuffix("x"))
                    scenario = Scenario(file, regime, factor, units)
                    rows += _rows(scenario, cell, found)
    return rows


def _rows(
    scenario: Scenario, cell: dict[str, Any], found: dict[str, Fit]
) -> list[dict[str, Any]]:
    """Return one row for every method that was measured and whose exchange is known."""
    results, rows = scenario.file["results"], []
    n, size = results["workers"], results["gradient_bytes"]
    for method, measured in cell.items():
        exchange = exchange_s(method, n, size, crowd_of(scenario.file), found)
        if exchange is None:
            continue
        row = {
            "regime": scenario.regime,
            "workers": n,
            "straggler": scenario.factor,
            "method": method,
            "measured_ms": measured["median_ms"],
        }
        for name, unit in scenario.units.items():
            step_ms = 1e3 * predict(method, n, scenario.factor, unit, exchange)
            row[f"{name}_ms"] = round(step_ms, 3)
            row[f"{name}_error"] = round(step_ms / measured["median_ms"] - 1.0, 4)
        rows.append(row)
    return rows


def _calm(cells: dict[str, Any]) -> float:
    return float(cells["straggler_1x"]["no_exchange"]["median_ms"]) / 1e3


def exchange_s(
    method: str, workers: int, size: float, crowd: float, found: dict[str, Fit]
) -> float | None:
    """Return the seconds of a method's exchange, or None if it was not fitted."""
    if method == "no_exchange":
        return 0.0
    name = {
        "codedgrad": "codedgrad",
        "codedgrad_same_bits": "codedgrad",
        "codedgrad_uncoded": "codedgrad",
        "horovod": "horovod",
        "ddp_gloo": "gloo",
        "ddp_nccl": "nccl",
    }[method]
    return found[name].seconds(workers, size, crowd) if name in found else None


def predict(
    method: str, workers: int, factor: float, unit_s: float, exchange: float
) -> float:
    """Return the seconds of a step in which one worker is `factor` times as slow."""
    ratios = np.ones((_STEPS, workers))
    ratios[:, -1] = factor
    times = simulate.from_ratios(ratios, median_s=unit_s)
    if method not in ("codedgrad", "codedgrad_same_bits"):
        step = simulate.run("sync", times).step
        return unit_s * float(step.mean()) + exchange
    network = Network(gradient_bytes=0.0, start_s=exchange)
    step = simulate.run(DEFAULT, times, network).step
    return unit_s * float(step[_SETTLED:].mean())
