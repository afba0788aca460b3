"""From exact to never waiting: step time and true error -> anytime.md, .json, .png.

    export OMP_NUM_THREADS=1
    python benchmarks/bench_anytime.py FOLDER     # of published logs, or none: profiles
    python benchmarks/bench_anytime.py --toy --out /some/folder

Arrivals are those of a log, micro-batch by micro-batch; gradients are recorded ones of
a real run. In every step the owner looks at what has arrived, first at its patience and
then where the law rho / (1 - rho) says that the bound may have come down to max_error,
and settles at the first look at which it has. The true error is the distance from the
recorded gradient of the whole batch.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anytime_page import CURVES, ERRORS, figure, page, pooled
from anytime_replay import LOGS, Point, measure, recording, times_of

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codedgrad.lab import simulate
    from codedgrad.lab.decoders import replay

HERE = Path(__file__).parent
TASKS = (("cnn", "fresh"), ("cnn", "classes"))  # task, partition


def plan(index: int, workers: int, partition: str) -> list[Point]:
    """Return the points of a family's log number `index`; fewer if a run is long."""
    every = [Point(kind, e, copies) for kind, copies in CURVES.values() for e in ERRORS]
    if workers < 32:
        return every
    if index == 0:
        some = {Point("learned", e, 0) for e in ERRORS} | {Point("learned", 0.1, 2)}
        some |= {Point("rescale", 0.1, 0), Point("rescale", math.inf, 0)}
    elif partition == "fresh":
        some = {Point("learned", 0.1, 0), Point("learned", 0.1, 2)}
    else:
        some = set()
    return [p for p in every if p in some or (some and p.max_error == 0.0)]


def points(folder: Path | None, found: dict[str, Any], *, toy: bool) -> Iterator[None]:
    """Fill {family: {"log, task partition": {point: figures}}}, and yield after each.

    `folder` has the published logs; without it they are drawn from profiles.
    """
    for family, (_, _, workers) in LOGS.items():
        if toy and workers > 10:
            continue
        steps = 14 if toy else 60 if workers > 32 else 100
        for index, (name, times) in enumerate(times_of(family, folder, steps).items()):
            for task, partition in TASKS:
                todo = plan(index, workers, partition)
                if toy:
                    todo = [p for p in todo if p.max_error in (0.0, 0.1, math.inf)]
                if not todo:
                    continue
                run = recording(task, partition, times.shape[1], times.shape[0])
                title = f"{name}, {task} {partition}"
                found.setdefault(family, {})[title] = cell(title, times, run, todo)
                yield


def cell(
    title: str, times: simulate.Times, run: replay.Recording, todo: list[Point]
) -> dict[str, dict[str, float]]:
    """Measure the points of one log and task."""
    out: dict[str, dict[str, float]] = {}
    for point in todo:
        exact = Point("learned", 0.0, point.copies).key
        if point.max_error == 0.0 and exact in out:  # no decoder is asked
            out[point.key] = out[exact]
            continue
        figures = out[point.key] = measure(times, run, point)
        print(
            f"{title}, {point.key}: step {figures['mean_step']:.2f}, error "
            f"{figures['mean_error']:.4f}, calibration {figures['calibration']:.2f}, "
            f"exceeded {figures['exceeded']:.2f}",
            flush=True,
        )
    return out


def main() -> None:
    """Measure every point, and write after every log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.time()
    results = args.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for _ in points(args.folder, found, toy=args.toy):
        write(args, found, time.time() - begin)


def write(args: argparse.Namespace, found: dict[str, Any], seconds: float) -> None:
    """Write the page, the figure and the numbers of what is done."""
    results = args.out / "results"
    source = "Logs: the published ones."
    if args.folder is None:
        source = "Logs: drawn from the shipped profiles."
    figure(found, results / "anytime.png")
    (args.out / "anytime.md").write_text(page(found, source))
    out = {
        "benchmark": "anytime",
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "codedgrad": codedgrad.__version__,
            "seconds": round(seconds),
        },
        "results": found,
        "pooled": {label: pooled(found, *curve) for label, curve in CURVES.items()},
    }
    short = json.loads(json.dumps(out), parse_float=lambda x: round(float(x), 5))
    (results / "anytime.json").write_text(json.dumps(short, indent=1) + "\n")


if __name__ == "__main__":
    main()
