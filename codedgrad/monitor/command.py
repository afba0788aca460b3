"""The command `codedgrad report RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from codedgrad.monitor.runlog import read_run

_EXAMPLES = """\
examples:
  codedgrad report runs/log                        # -> runs/log/report.html
  codedgrad report runs/log --out page.html --trace trace.json

RUN is the folder given as CodedGradient(..., log=RUN), or launch/train.py --log RUN."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    summary = "a run as one HTML page"
    command = commands.add_parser(
        "report",
        help=summary,
        description=summary,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("run_folder", metavar="RUN", type=Path)
    command.add_argument("--out", type=Path, help="the page; default RUN/report.html")
    command.add_argument("--trace", type=Path, help="a Chrome trace to write, too")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and, if `args.trace` names a file, the trace; return 0."""
    from codedgrad.monitor.chrome import write_chrome_trace
    from codedgrad.monitor.html import write_report

    log = read_run(args.run_folder)
    out = args.out or args.run_folder / "report.html"
    write_report(log, out)
    print(f"wrote {out}")
    if args.trace is not None:
        write_chrome_trace(log, args.trace)
        print(f"wrote {args.trace}")
    return 0
