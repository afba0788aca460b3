"""Every decoder on recordings that nothing was fitted on -> decoder.md, decoder.json.

    python benchmarks/bench_decoder.py --cache FOLDER     # about half an hour
    python benchmarks/bench_decoder.py --toy --out FILE.json

README.md defines the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import harness
import torch
from decoder_page import page
from decoder_scenarios import LATE, STEPS, TASKS, information, recording, scenario
from decoder_tables import Rows, overall, scenarios, verdicts

from codedgrad.lab.decoders import record
from codedgrad.lab.decoders.network import Network

INFORMATION = ("1 of 8", "4 of 8", "same one")  # scenarios with part of the late work


def figures_of(job: tuple[str, str, argparse.Namespace]) -> Any:
    """Return the rows of one recording: its scenarios, and new information."""
    name, partition, args = job
    torch.set_num_threads(1)
    network = Network.load(args.network) if args.network else Network.pretrained()
    run = recording(name, partition, 40 if args.toy else STEPS, args.cache)
    rows, news = [], []
    for title, late in list(LATE.items())[: 2 if args.toy else None]:
        about = {"task": name, "partition": partition, "late": title}
        rows.append({**about, **scenario(run, late, network)})
        print(scenarios(rows[-1:]).splitlines()[-1], flush=True)
        if title in INFORMATION and not args.no_information:
            news.append({**about, **information(run, late, network)})
            numbers = [f"{k} {v:.3f}" for k, v in news[-1].items() if k not in about]
            print("    " + ", ".join(numbers), flush=True)
    return rows, news


def main() -> None:
    """Record the runs, evaluate the decoders, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder that keeps the recordings")
    parser.add_argument("--network", type=Path, help="instead of the shipped one")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--page", type=Path, help="page to write")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--toy", action="store_true", help="seconds, not minutes")
    parser.add_argument("--no-information", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="recordings at a time")
    args = parser.parse_args()
    tasks = ["wine"] if args.toy else args.tasks
    jobs = [(name, p, args) for name in tasks for p in record.PARTITIONS]
    context = multiprocessing.get_context("spawn")
    rows: Rows = []
    news: Rows = []
    with context.Pool(args.jobs) as pool:
        for some, more in pool.imap(figures_of, jobs):
            rows += some
            news += more
            write(args, rows, news)


def write(args: argparse.Namespace, rows: Rows, news: Rows) -> None:
    """Write what has been measured so far, once it has every partition."""
    if {r["partition"] for r in rows} != set(record.PARTITIONS):
        return
    figures = overall(rows, news)
    print(verdicts(figures))
    short = json.loads(
        json.dumps({"figures": figures, "scenarios": rows, "information": news}),
        parse_float=lambda x: float(f"{float(x):.5g}"),
    )
    if args.out:
        harness.write(args.out, "decoder", short)
    if args.page:
        args.page.write_text(page(figures, rows, news))


if __name__ == "__main__":
    main()
