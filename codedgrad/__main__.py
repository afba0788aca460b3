"""The command line: `codedgrad COMMAND`, or `python -m codedgrad COMMAND`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from codedgrad.errors import CodedGradError
from codedgrad.inference.front import command as serve
from codedgrad.job import doctor, launch
from codedgrad.lab.commands import decoder, plan, simulate, trace
from codedgrad.monitor import command as report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.lab.traces import Log

    Adder = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="what this machine has, and what brings the rest",
        description="Exit status 0: training can run here; 1: it cannot.",
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=lambda args: doctor.main(as_json=args.json))


def _plot(log: Log, path: Path) -> None:
    from codedgrad.monitor.plots import plot_log  # matplotlib is slow to import

    plot_log(log, path)


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace.add(commands, _plot)


_COMMANDS: tuple[Adder, ...] = (
    launch.add,
    serve.add,
    _add_doctor,
    _add_trace,
    simulate.add,
    plan.add,
    report.add,
    decoder.add,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="codedgrad", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in _COMMANDS:
        add(commands)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except CodedGradError as error:
        print(f"codedgrad {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`
        return 0


if __name__ == "__main__":
    sys.exit(main())
