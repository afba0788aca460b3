"""`codedgrad plan LOG`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.lab.commands import common
from codedgrad.lab.simulate.plan import plan

if TYPE_CHECKING:
    import argparse

_EXAMPLES = """\
  codedgrad plan runs/log                  # the log of a run of yours
  codedgrad plan log.npz --model stall
  codedgrad plan profile:aws_lambda --workers 64 --json

"off" is a normal answer: where everybody is equally fast there is nothing to win."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the command line."""
    command = common.parser(
        commands, "plan", "which code for this job, and what it would gain", _EXAMPLES
    )
    common.add_log_options(command)
    command.add_argument(
        "--micro-cost",
        type=float,
        default=0.0,
        help="a pass takes so much longer per doubling of its micro-batches (0.02)",
    )
    command.add_argument(
        "--same-bits",
        action="store_true",
        help="for CodedGradient(same_bits=True): own passes are micro-batches, too",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print the recommendation."""
    log, times, comm = common.load(args)
    result = plan(
        times,
        comm,
        micro_cost=args.micro_cost,
        same_bits=args.same_bits,
        seed=args.seed,
    )
    if args.json:
        common.show_json({"log": log.source, "model": times.model, **result.to_json()})
        return 0
    steps, workers = times.shape
    print(f"{log.source}: {steps} steps, {workers} workers, model {times.model}")
    print(f"recommended       {result.recommend}")
    chosen_on, judged_on = result.steps
    apart = f"; on {judged_on} other steps than those below"
    print(
        f"expected          {result.speedup:.2f} x "
        f"({result.speedup_low:.2f} to {result.speedup_high:.2f}, 95 %)"
        f"{apart if judged_on < steps else ''}"
    )
    print(f"perfect division  {result.bound_speedup:.2f} x")
    print(f"redundant work    {100 * result.redundant_work:.1f} %")
    print(f"why               {result.reason}")
    for note in result.notes:
        print(f"note              {note}")
    print(f"\nthe choice was made on {chosen_on} steps, of which these figures are:")
    print("candidate                                speed-up   redundant work")
    for row in result.table:
        share = f"{100 * row['redundant']:.1f} %"
        print(f"{row['policy']:<40} {row['speedup']:>8.2f}   {share:>14}")
    if result.choices:
        print("\nown passes and help                      speed-up   nobody late")
    for row in result.choices:
        calm = f"{row['calm']:.2f} passes"
        print(f"{row['choice']:<40} {row['speedup']:>8.2f}   {calm:>14}")
    if result.recommend != "off":
        call = _call(result.recommend) + (", same_bits=True" if args.same_bits else "")
        print(f"\nuse: codedgrad.CodedGradient(model, {call})")
    return 0


def _call(policy: str) -> str:
    """Return the Python arguments that make a policy's code and patience."""
    name, _, settings = policy.partition(":")
    words = [w for w in settings.split(",") if w]
    patience = [w for w in words if w.startswith("patience=")]
    rest = [w for w in words if w not in patience]
    order = [f'order="{w[6:]}"' if w.startswith("order=") else w for w in rest]
    inside = ", ".join(["codedgrad.size()", *order])
    return ", ".join([f"codedgrad.codes.{name}({inside})", *patience])
