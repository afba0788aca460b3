"""Exchange costs fitted to live files of bench_scaling, and its steps predicted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from exchange_model import Fit, Network, Point, best_fit
from scaling_model import DEFAULT

from codedgrad.lab import simulate

if TYPE_CHECKING:
    from pathlib import Path

EXCHANGES = ("codedgrad", "mpi", "gloo", "nccl", "horovod")
_UNITS = {"B": 1.0, "KB": 1 << 10, "MB": 1 << 20}
_STEPS = 40  # simulated; the first ones, in which patience settles, are left out
_SETTLED = 20


def read(folder: Path) -> list[dict[str, Any]]:
    """The live files, by number of workers.

    Raises:
        SystemExit: there are none.
    """
    found = [json.loads(p.read_text()) for p in folder.glob("scaling-*.json")]
    found = [f for f in found if f.get("benchmark") == "bench_scaling"]
    if not found:
        raise SystemExit(f"{folder} holds no scaling-N.json of `bench_scaling.py live`")
    return sorted(found, key=lambda f: int(f["results"]["workers"]))


def size_of(name: str) -> float:
    """Bytes: "4 KB" -> 4096."""
    number, unit = name.split()
    return float(number) * _UNITS[unit]


def points(files: list[dict[str, Any]], method: str) -> list[Point]:
    """What was measured of one method's exchange."""
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
    """Workers that take turns on a core."""
    here = file["results"]["workers_of_a_machine"]
    return max(1.0, here / int(file["environment"]["cores"]))


def fits(files: list[dict[str, Any]]) -> dict[str, Fit]:
    """By method; codedgrad's exchange is linear, of others the better shape."""
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
    """Every live median beside its prediction.

    `told`: the pass is that of `no_exchange` in the same file and regime, without a
    straggler. `carried`: with fewest workers it took so long above its nominal time,
    and that is all that is known of it.
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
            for scenario, cell in cells.items():
                if scenario.startswith("straggler_"):
                    rows += _rows(file, regime, scenario, cell, units, found)
    return rows


def _rows(
    file: dict[str, Any],
    regime: str,
    scenario: str,
    cell: dict[str, Any],
    units: dict[str, float],
    found: dict[str, Fit],
) -> list[dict[str, Any]]:
    results, rows = file["results"], []
    n, size = results["workers"], results["gradient_bytes"]
    factor = float(scenario.removeprefix("straggler_").removesuffix("x"))
    for method, measured in cell.items():
        exchange = exchange_s(method, n, size, crowd_of(file), found)
        if exchange is None:
            continue
        row = {
            "regime": regime,
            "workers": n,
            "straggler": factor,
            "method": method,
            "measured_ms": measured["median_ms"],
        }
        for name, unit in units.items():
            step_ms = 1e3 * predict(method, n, factor, unit, exchange)
            row[f"{name}_ms"] = round(step_ms, 3)
            row[f"{name}_error"] = round(step_ms / measured["median_ms"] - 1.0, 4)
        rows.append(row)
    return rows


def _calm(cells: dict[str, Any]) -> float:
    return float(cells["straggler_1x"]["no_exchange"]["median_ms"]) / 1e3


def exchange_s(
    method: str, workers: int, size: float, crowd: float, found: dict[str, Fit]
) -> float | None:
    """Seconds of a method's exchange; None: it was not fitted."""
    if method == "no_exchange":
        return 0.0
    name = {
        "codedgrad": "codedgrad",
        "codedgrad_uncoded": "codedgrad",
        "horovod": "horovod",
        "ddp_gloo": "gloo",
        "ddp_nccl": "nccl",
    }[method]
    return found[name].seconds(workers, size, crowd) if name in found else None


def predict(
    method: str, workers: int, factor: float, unit_s: float, exchange: float
) -> float:
    """Seconds of a step with one worker `factor` times slow."""
    ratios = np.ones((_STEPS, workers))
    ratios[:, -1] = factor
    times = simulate.from_ratios(ratios, median_s=unit_s)
    if method != "codedgrad":
        step = simulate.run("sync", times).step
        return unit_s * float(step.mean()) + exchange
    network = Network(gradient_bytes=0.0, start_s=exchange)
    step = simulate.run(DEFAULT, times, network).step
    return unit_s * float(step[_SETTLED:].mean())
