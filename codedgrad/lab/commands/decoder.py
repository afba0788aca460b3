"""`codedgrad decoder record [TASK]` and `codedgrad decoder eval FILE.npz`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.commands import common

if TYPE_CHECKING:
    import argparse

_EXAMPLES = """\
  codedgrad decoder record cnn --partition fixed --out run.npz
  codedgrad decoder record train.py:make --micro 4 --population --out mine.npz
  codedgrad decoder eval run.npz --missing 4 --pattern bursty
  codedgrad decoder eval run.npz --missing 1 --pattern fixed --json

tasks: logistic, mlp, cnn, cancer, diabetes, wine, text, attention, linear; or
FILE.py:FUNCTION, a function without arguments that returns (model, x, y, loss_fn) or
(model, x, y, loss_fn, classes), with loss_fn(model(x), y) a mean over the samples and
classes [samples] what --partition classes sorts by (default: y).

A recording is an .npz archive of grads [steps, shards, D] and tensor_sizes [tensors];
any program may write one."""
_PARTITIONS = ("fresh", "fixed", "classes", "full")
_PATTERNS = ("random", "fixed", "bursty")
_COLUMNS = (
    ("mean", "mean"),
    ("median", "median"),
    ("geomean_ratio", "over rescale"),
    ("first_50", "first 50"),
    ("calibration", "calibration"),
    ("exceeded", "exceeded"),
    ("population", "population"),
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `decoder` and its two parts to the command line."""
    command = common.parser(
        commands, "decoder", "gradients of a run, and how well late ones are estimated",
        _EXAMPLES,
    )  # fmt: skip
    parts = command.add_subparsers(dest="what", required=True)
    record = common.parser(
        parts, "record", "train, and write every shard's gradients", _EXAMPLES
    )
    add_to = record.add_argument
    add_to("task", metavar="TASK", nargs="?", default="cnn", help="default: cnn")
    add_to("--out", type=Path, required=True, metavar="FILE.npz")
    add_to("--partition", choices=_PARTITIONS, default="fresh")
    add_to("--shards", type=int, default=8)
    add_to("--steps", type=int, default=300)
    add_to("--batch", type=int, default=32, help="samples of a shard in a step")
    add_to("--micro", type=int, default=1, help="micro-batches per shard, kept apart")
    add_to("--adam", action="store_true", help="AdamW; default: SGD with momentum")
    add_to("--lr", type=float, help="learning rate; default: the task's, else 0.05")
    add_to("--population", action="store_true", help="and a held-out batch's gradient")
    add_to("--dtype", choices=("float32", "float16"), default="float32")
    add_to("--seed", type=int, default=0)
    record.set_defaults(run=_record)

    judge = common.parser(
        parts, "eval", "every decoder on a recording, online", _EXAMPLES
    )
    add_to = judge.add_argument
    add_to("file", metavar="FILE.npz", type=Path)
    add_to("--missing", type=int, required=True, metavar="R", help="shards late a step")
    add_to("--pattern", choices=_PATTERNS, default="random", help="who is late")
    add_to("--delay", type=int, default=1, help="steps until late ones are known")
    add_to("--seed", type=int, default=0, help="of who is late")
    add_to("--json", action="store_true", help="for programs")
    judge.set_defaults(run=_eval)


def _record(args: argparse.Namespace) -> int:
    from codedgrad.lab.decoders import record, tasks

    if args.lr is not None and not args.lr > 0.0:
        raise ConfigError(f"--lr must be above 0, got {args.lr}")
    if not args.out.parent.is_dir():
        raise ConfigError(f"there is no folder {args.out.parent}; make it first")
    make = tasks.task_of if ":" in args.task else tasks.task
    task = make(args.task, args.seed)
    fields = ("partition", "shards", "steps", "batch", "micro", "seed", "adam", "lr")
    run = record.Run(
        **{name: getattr(args, name) for name in fields}, population=args.population
    )
    arrays = record.record(task, run)
    if args.dtype == "float16":
        arrays = record.halve(arrays)
    with args.out.open("wb") as file:  # np.savez would append .npz to other names
        np.savez(file, **arrays)
    steps, rows, count = arrays["grads"].shape
    print(
        f"wrote {args.out}: {steps} steps, {rows // args.micro} shards x {args.micro} "
        f"micro-batches, {count} elements in {len(arrays['tensor_sizes'])} tensors"
    )
    return 0


def _eval(args: argparse.Namespace) -> int:
    from codedgrad.lab.decoders import evaluate, replay

    recording = replay.load(args.file)
    steps, shards, micro, count = recording.grads.shape
    arrived = replay.erasures(steps, shards, args.missing, args.pattern, args.seed)
    figures = evaluate.summary(evaluate.errors(recording, arrived, args.delay))
    about: dict[str, Any] = {
        "file": str(args.file),
        "steps": steps,
        "shards": shards,
        "micro": micro,
        "elements": count,
        "missing": args.missing,
        "pattern": args.pattern,
        "delay": args.delay,
        "seed": args.seed,
    }
    if recording.population is not None:
        skip = int(evaluate.SKIPPED * steps)
        batch = evaluate.population_of_batch(recording)[skip:]
        about["batch_population"] = float(batch.mean())
    if args.json:
        common.show_json({"decoders": figures, **about})
    else:
        _print_table(figures, about)
    return 0


def _print_table(figures: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    print(
        f"{about['file']}: {about['steps']} steps, {about['missing']} of "
        f"{about['shards']} shards late ({about['pattern']}), {about['delay']} step(s) "
        f"long; {about['elements']} elements"
    )
    print("relative squared error of the batch's gradient, first 10 % left out\n")
    columns = [(k, t) for k, t in _COLUMNS if any(k in f for f in figures.values())]
    print(" " * 10 + "".join(f"{title:>14}" for _, title in columns))
    for name, row in sorted(figures.items(), key=lambda item: item[1]["mean"]):
        cells = [f"{row[k]:.4g}" if k in row else "-" for k, _ in columns]
        print(f"{name:<10}" + "".join(f"{cell:>14}" for cell in cells))
    if "batch_population" in about:
        print(
            "\npopulation: against the gradient of a held-out batch; the batch's own "
            f"gradient has {about['batch_population']:.4g}"
        )
