"""What the commands that read a log share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from codedgrad.errors import ConfigError
from codedgrad.lab import traces
from codedgrad.lab.simulate import MODELS, Comm, Times, from_log


def parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_log_options(command: argparse.ArgumentParser) -> None:
    """Add the argument LOG, and the options that choose a part of it."""
    add = command.add_argument
    add(
        "log", metavar="LOG", help=".npz, .csv, .parquet, .json, folder or profile:NAME"
    )
    add("--workers", type=int, metavar="N", help="so many of the log's workers")
    add("--steps", type=int, metavar="S", help="the first S steps; sampled ones: 1000")
    add("--sample", action="store_true", help="draw N workers from a fitted profile")
    add("--seed", type=int, default=0, help="of what is drawn")
    add("--model", choices=MODELS, default="rate", help="of slowness (default: rate)")
    add("--alpha", type=float, default=0.0, help="seconds per message")
    add("--beta", type=float, default=0.0, help="seconds per byte")
    add("--gradient-bytes", type=float, default=4e6, help="of one gradient (4e6)")
    add("--json", action="store_true", help="for programs")


def load(args: argparse.Namespace) -> tuple[traces.Log, Times, Comm]:
    """Return the log that the options name, its times, and the network.

    Raises:
        ConfigError: the log cannot be read, or has fewer workers than asked for.
    """
    for name in ("workers", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if args.log.startswith("profile:"):
        profile = traces.Profile.load(args.log.removeprefix("profile:"))
        log = profile.sample(args.steps or 1000, args.workers or 8, args.seed)
    else:
        log = traces.read(args.log)
        if args.sample:
            size = args.workers or log.size
            log = traces.fit(log).sample(args.steps or 1000, size, args.seed)
        elif args.workers is not None and args.workers != log.size:
            log = log.take(args.workers, args.seed)
    times = from_log(log, args.model)
    if args.steps is not None:
        times = times.first(args.steps)
    return log, times, Comm(args.alpha, args.beta, args.gradient_bytes)


def show_json(data: dict[str, Any]) -> None:
    """Print JSON, for programs."""
    print(json.dumps(data, indent=1))
