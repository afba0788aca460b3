"""The straggler-free grid in one table: codedgrad over Horovod and over DDP.

    python benchmarks/summary.py benchmarks/results/MACHINE [--out FILE.md]

It reads step-TASK-N.json and exchange-N.json, which benchmarks/run_grid.sh writes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

TASKS = ("digits", "text", "gpt10m")
EXCHANGES = ("4 KB", "160 KB", "4 MB", "40 MB")
MEAN_TARGET, WORST_TARGET = 0.95, 1.02
PEERS = {"Horovod": ("horovod",), "DDP": ("ddp_gloo", "ddp_nccl", "gloo", "nccl")}

# Ratios by peer; "ms" is codedgrad's median, and README.md defines "spread".
Cell = dict[str, float]


def read(path: Path, keys: list[str]) -> Cell:
    """Read one cell of the grid; it is empty where nothing was measured."""
    if not path.is_file():
        return {}
    rows: Any = json.loads(path.read_text())["results"]
    for key in keys:
        rows = rows.get(key, {})
    if "codedgrad" not in rows:
        return {}
    ours = rows["codedgrad"]
    cell = {
        "ms": ours["median_ms"],
        "spread": (ours["p75_ms"] - ours["p25_ms"]) / ours["median_ms"],
    }
    for peer, names in PEERS.items():
        for name in names:
            if name in rows:
                cell[peer] = ours["median_ms"] / rows[name]["median_ms"]
    return cell


def grids(
    folder: Path, workers: list[int], exchange_workers: int
) -> dict[str, dict[str, Cell]]:
    """Return {"steps", "exchange": {cell's name: cell}}."""
    steps = {
        f"{task}, {n} workers": read(folder / f"step-{task}-{n}.json", ["straggler_1x"])
        for task in TASKS
        for n in workers
    }
    file = folder / f"exchange-{exchange_workers}.json"
    exchange = {
        f"exchange of {size}, {exchange_workers} workers": read(file, [size])
        for size in EXCHANGES
    }
    return {"steps": steps, "exchange": exchange}


def verdict(cells: dict[str, Cell], peer: str) -> str:
    """Return the means, the worst cell, and whether the targets are met."""
    ratios = {name: cell[peer] for name, cell in cells.items() if peer in cell}
    if not ratios:
        return "nothing measured"
    mean = statistics.fmean(ratios.values())
    geometric = math.exp(statistics.fmean(map(math.log, ratios.values())))
    worst = max(ratios, key=lambda name: ratios[name])
    over = sum(r > WORST_TARGET for r in ratios.values())
    missing = len(cells) - len(ratios)
    met = {True: "met", False: "**missed**"}
    if missing:
        met = {True: "met so far", False: "**missed**"}
    text = (
        f"mean {mean:.3f} (geometric {geometric:.3f}), target {MEAN_TARGET}: "
        f"{met[mean <= MEAN_TARGET]}; worst {ratios[worst]:.3f} ({worst}), "
        f"{over} of {len(ratios)} above {WORST_TARGET}: {met[over == 0]}"
    )
    return text + (f"; {missing} cells not measured" if missing else "")


def page(folder: Path, workers: list[int], exchange_workers: int) -> str:
    """Return the table and the verdicts as Markdown."""
    found = grids(folder, workers, exchange_workers)
    lines = ["| | codedgrad, ms | quartiles | over Horovod | over DDP or torch |"]
    lines += ["|---" * 5 + "|"]
    for cells in found.values():
        for name, cell in cells.items():
            shown = [f"{cell[p]:.3f}" if p in cell else "-" for p in PEERS]
            if cell:
                middle = [f"{cell['ms']:.2f}", f"{100 * cell['spread']:.0f} %"]
            else:
                middle = ["not measured", "-"]
            lines.append(f"| {name} | {' | '.join(middle + shown)} |")
    lines.append("")
    everything = {k: c for cells in found.values() for k, c in cells.items()}
    for title, cells in {**found, "all": everything}.items():
        lines += [f"- {title}, over {p}: {verdict(cells, p)}" for p in PEERS]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page, and write it if --out is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--exchange-workers", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = page(args.folder, args.workers, args.exchange_workers)
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
