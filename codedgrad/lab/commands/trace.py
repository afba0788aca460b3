"""`codedgrad trace info|plot|fit|convert LOG`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.lab import traces
from codedgrad.lab.commands import common
from codedgrad.lab.traces.statistics import describe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    # Draws a log into a file. The lab does not know what draws.
    Plotter = Callable[[traces.Log, Path], None]

_EXAMPLES = """\
  codedgrad trace info log.npz
  codedgrad trace plot runs/log --out log.png
  codedgrad trace fit log.csv --out profile.json
  codedgrad trace convert trace.json --out log.npz"""


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], plot: Plotter
) -> None:
    """Add `trace` to the command line; `plot` is what `trace plot` calls."""
    command = common.parser(
        commands, "trace", "look at a log of per-worker step times", _EXAMPLES
    )
    command.add_argument("what", choices=["info", "plot", "fit", "convert"])
    command.add_argument(
        "log", metavar="LOG", help=".npz, .csv, .parquet, .json, folder"
    )
    command.add_argument("--out", type=Path, help="file to write (plot, fit, convert)")
    command.add_argument("--json", action="store_true", help="for programs (info)")
    command.set_defaults(run=lambda args: run(args, plot))


def run(args: argparse.Namespace, plot: Plotter) -> int:
    """Print, draw, fit or convert the log."""
    log = traces.read(args.log)
    stem = Path(args.log).name.split(".")[0]
    if args.what == "info":
        return _info(log, as_json=args.json)
    if args.what == "plot":
        out = args.out or Path(f"{stem}.png")
        plot(log, out)
    elif args.what == "fit":
        out = args.out or Path(f"{stem}-profile.json")
        traces.fit(log).save(out)
    else:
        out = args.out or Path(f"{stem}.npz")
        log.save(out)
    print(f"wrote {out}")
    return 0


def _info(log: traces.Log, *, as_json: bool) -> int:
    found = describe(log)
    if as_json:
        common.show_json({"log": log.source, **found})
        return 0
    print(f"{log.source}: {log.steps} steps, {log.size} workers")
    for key in ("source", "licence", "license"):
        if key in log.meta:
            print(f"{key}: {log.meta[key]}")
    print(f"median pass               {found['median_s']:.4g} s")
    print("time / the step's median  " + "  ".join(
        f"{name} {found[name]:.2f}" for name in ("p50", "p90", "p99", "p999", "max")
    ))  # fmt: skip
    print("slower than 1.5 x, 2 x, 5 x  " + "  ".join(
        f"{100 * found[name]:.2f} %" for name in ("above_1.5", "above_2", "above_5")
    ))  # fmt: skip
    print(
        f"waiting for everybody     {found['sync_over_median']:.2f} x the median worker"
    )
    print(f"perfect division          {found['bound_speedup']:.2f} x faster than that")
    print(f"slow next step, if slow   {100 * found['slow_again']:.0f} %"
          f" (anybody: {100 * found['above_1.5']:.1f} %)")  # fmt: skip
    print(f"the slowness is           {found['kind']}")
    return 0
