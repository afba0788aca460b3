"""`codedgrad simulate LOG --policy NAME[:key=value,...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.lab.commands import common
from codedgrad.lab.simulate import POLICIES, evaluate

if TYPE_CHECKING:
    import argparse

_EXAMPLES = """\
  codedgrad simulate log.npz --policy spread:micro=8,copies=2
  codedgrad simulate log.npz --policy sync --policy fractional:copies=2 --model stall
  codedgrad simulate profile:aws_lambda --workers 1024 --policy spread:copies=4
  codedgrad simulate log.csv --policy backup:drop=2 --alpha 5e-6 --beta 1e-9 --json

policies: """ + ", ".join(POLICIES)

_ROWS = (
    ("mean_step", "mean step (medians)"),
    ("p95", "p95"),
    ("p99", "p99"),
    ("speedup", "speed-up over sync"),
    ("share_of_bound", "share of the bound"),
    ("redundant_work", "redundant work"),
    ("lost_work", "work left out"),
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate` to the command line."""
    command = common.parser(
        commands, "simulate", "step times of a log under a policy", _EXAMPLES
    )
    common.add_log_options(command)
    command.add_argument(
        "--policy", action="append", metavar="NAME[:k=v,...]", help="again for more"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate every policy and print its figures."""
    log, times, comm = common.load(args)
    names = args.policy or ["sync", "spread"]
    results = [evaluate(name, times, comm) for name in names]
    if args.json:
        common.show_json(results[0] if len(results) == 1 else {"policies": results})
        return 0
    steps, workers = times.shape
    first = results[0]
    print(
        f"{log.source}: {steps} steps, {workers} workers, model {times.model}, "
        f"median {times.median_s:.4g} s"
    )
    if times.filled:
        print(f"{times.filled} missing times are taken as {times.filled_by}")
    print(f"a perfect division of the work would gain {first['bound_speedup']:.2f} x\n")
    width = max(len(name) for name in names)
    print(" " * width + "".join(f"  {title:>20}" for _, title in _ROWS))
    for result in results:
        cells = "".join(f"  {result[key]:>20.3f}" for key, _ in _ROWS)
        print(f"{result['policy']:<{width}}{cells}")
    return 0
