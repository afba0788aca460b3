"""Loss against wall clock and against steps -> time_to_loss.md, .json, .png.

    export OMP_NUM_THREADS=1
    python benchmarks/bench_time_to_loss.py FOLDER      # of published logs, or none
    python benchmarks/bench_time_to_loss.py FOLDER --only cnn --minutes 5   # in part
    python benchmarks/bench_time_to_loss.py --toy --out /some/folder

One process trains in virtual time: gradients and optimizer steps are real, step times
come from a log or a fault and are charged to a clock that nobody waits for. Finished
cells are kept in results/time_to_loss.json, and a second run does what is missing.
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
from loss_arrivals import SCENARIOS, timeline
from loss_grid import grid
from loss_page import figure, page
from loss_tasks import TASKS
from loss_training import measure

import codedgrad

if TYPE_CHECKING:
    from loss_training import Cell

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    parser.add_argument("--only", choices=TASKS, help="one task")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop")
    return parser.parse_args()


def wanted(cell: Cell, args: argparse.Namespace) -> bool:
    """Return whether the options ask for the cell."""
    if args.only and cell.task != args.only:
        return False
    return not args.toy or (
        cell.partition == "non-IID"
        and cell.task != "cnn"
        and cell.scenario in ("any", "one always 10 x", "Lambda log")
    )


def main() -> None:
    """Run the cells that are missing, and write the results."""
    args = arguments()
    torch.set_num_threads(1)
    steps, seeds = (20, 1) if args.toy else (150, 5)
    results = args.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / "time_to_loss.json"
    setup = {"steps": steps, "seeds": seeds, "logs": args.folder is not None}
    found = read(path, setup)
    begin = time.monotonic()
    for cell in grid():
        if cell.key in found or not wanted(cell, args):
            continue
        if time.monotonic() - begin > 60.0 * args.minutes:
            break
        found[cell.key] = measure(cell, steps, seeds, args.folder)
        print(cell.key, found[cell.key]["loss"][0][-1], flush=True)
        write(path, setup, found)
    clocks = {
        s: [timeline(s, steps, seed, args.folder).clocks for seed in range(seeds)]
        for s in SCENARIOS
    }
    source = "Logs: the published ones." if args.folder else "Logs: from profiles."
    (args.out / "time_to_loss.md").write_text(page(found, clocks, source, seeds))
    figure(found, clocks, results / "time_to_loss.png")


def read(path: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of an earlier run with the same setup."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    return dict(before["results"]) if before["setup"] == setup else {}


def write(path: Path, setup: dict[str, Any], found: dict[str, Any]) -> None:
    """Write all cells that have been run so far."""
    out = {
        "benchmark": "time_to_loss",
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "codedgrad": codedgrad.__version__,
        },
        "setup": setup,
        "results": found,
    }
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
