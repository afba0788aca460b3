"""A full training script, kept as small as possible.

    bash launch/mpirun.sh -n 4 python launch/train.py --task digits
    bash launch/mpirun.sh -n 4 python launch/train.py --task text --steps 200
    bash launch/mpirun.sh -n 4 python launch/train.py --code uncoded --max-error 0.3
    bash launch/mpirun.sh -n 4 python launch/train.py --local-group 2
    bash launch/horovodrun.sh -np 4 python launch/train.py --task digits

It writes OUT/summary.json, OUT/arrivals.png and TensorBoard files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import tasks
import torch
from torch import Tensor, nn
from tqdm import tqdm

import codedgrad

PARTITIONS = ("shuffle", "fixed", "classes")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", choices=tasks.TASKS, default="digits")
    add("--data", type=Path, help="folder of the data (cifar10)")
    add("--code", help='e.g. "uncoded" or "spread:micro=8,copies=2"; default: spread')
    add(
        "--local-group",
        type=lambda text: text if text == "node" else int(text),
        help="processes that are one worker together: node, or a number",
    )
    add("--epochs", type=int, help="default: the task's")
    add("--steps", type=int, help="stop after so many steps")
    add("--batch-size", type=int, help="of a step, over all workers")
    add("--lr", type=float)
    add("--seed", type=int, default=0)
    add("--faults", help='e.g. "slow:worker=3,factor=8", see codedgrad/job/faults.py')
    add(
        "--same-bits",
        action="store_true",
        help="no bit depends on who is late; own passes are then micro-batches",
    )
    add("--patience", type=float, default=0.1, help="of a pass")
    add(
        "--max-error",
        type=float,
        default=0.0,
        help="relative squared error at which a step may end with an estimate",
    )
    add("--max-noise", type=float, help="the same by the batch's own sampling noise")
    add("--late", choices=("refresh", "compensate"), default="refresh")
    add(
        "--partition",
        choices=PARTITIONS,
        default="shuffle",
        help="fixed: shard j keeps its part of the data; classes: cut by label",
    )
    add(
        "--device",
        default="cpu",
        help="cuda: a machine's workers take its GPUs in turn",
    )
    add("--log", type=Path, help="new folder for `codedgrad plan` and `report`")
    add("--out", type=Path, default=Path("runs/train"))
    return parser.parse_args()


def main() -> None:
    """Train one task."""
    args = arguments()
    codedgrad.init()
    task = tasks.make(args.task, args.data, args.seed)
    if args.device == "cuda":
        torch.cuda.set_device(codedgrad.local_rank() % torch.cuda.device_count())
    task.model.to(args.device)
    codedgrad.broadcast_parameters(task.model.state_dict())
    sampler = codedgrad.ShardSampler(
        task.train,
        args.batch_size or task.batch_size,
        seed=args.seed,
        drop_last=True,
        partition="shuffle" if args.partition == "shuffle" else "fixed",
        by=labels(task) if args.partition == "classes" else None,
    )
    coded = codedgrad.CodedGradient(
        task.model,
        codedgrad.codes.parse(args.code, workers(args)) if args.code else None,
        patience=args.patience,
        policy=policy(args),
        same_bits=args.same_bits,
        seed=args.seed,
        faults=args.faults,
        log=args.log,
        local_group=args.local_group,
    )
    seconds = train(args, task, coded, sampler)
    same = same_everywhere(checksum(task.model))
    if codedgrad.rank() == 0:
        finish(args, task, coded, seconds, same_on_all_workers=same)
    if args.log is not None and coded.record.estimates:
        path = args.log / f"decoder-{codedgrad.rank()}.csv"
        coded.record.save_estimates(path)
    coded.close()
    codedgrad.shutdown()


def train(
    args: argparse.Namespace,
    task: tasks.Task,
    coded: codedgrad.CodedGradient,
    sampler: codedgrad.ShardSampler,
) -> float:
    """Run the training loop and return its seconds; worker 0 shows its progress."""
    model, rank = task.model, codedgrad.rank()
    steps = args.steps or (args.epochs or task.epochs) * len(sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr or task.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr or task.lr, total_steps=steps + 1
    )

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        x = task.augment(x).to(args.device)
        return task.loss(model(x), y.to(args.device))

    board = codedgrad.monitor.TensorBoardMonitor(args.out) if rank == 0 else None
    bar = tqdm(total=steps, desc=coded.code.name, disable=rank != 0, mininterval=0.5)
    begin = time.perf_counter()
    epoch = 0
    while coded.step < steps:
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            loss = coded.backward(loss_fn, shards)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            if board is not None and coded.report is not None:
                board.step(coded.report, lr=schedule.get_last_lr()[0])
            if coded.step == steps:
                break
        epoch += 1
    seconds = time.perf_counter() - begin
    bar.close()
    if board is not None:
        board.picture(coded.record, coded.code.workers)
        board.close()
    return seconds


def workers(args: argparse.Namespace) -> int:
    """Return the code's number of workers: of processes, or of local groups."""
    if args.local_group == "node":
        return codedgrad.cross_size()
    return max(1, codedgrad.size() // (args.local_group or 1))


def policy(args: argparse.Namespace) -> Any:
    """Return the policy: when a step may end."""
    if args.max_error == 0.0 and args.max_noise is None:
        return "exact"
    return codedgrad.approximate(
        args.max_error or None,
        max_noise=args.max_noise,
        patience=args.patience,
        late=args.late,
    )


def labels(task: tasks.Task) -> Tensor:
    """Return the label of every training sample.

    Raises:
        SystemExit: samples have several labels.
    """
    y = task.train.tensors[1]
    if y.ndim != 1:
        raise SystemExit("--partition classes needs a task with one label per sample")
    return y


def checksum(model: nn.Module) -> str:
    """Return the SHA-256 of every bit of the parameters and buffers."""
    h = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        h.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def same_everywhere(value: str) -> bool:
    """Return whether all workers have this value."""
    try:
        codedgrad.job.agreement.check_agreement("parameters", [("checksum", value)])
    except codedgrad.MismatchError:
        return False
    return True


def finish(
    args: argparse.Namespace,
    task: tasks.Task,
    coded: codedgrad.CodedGradient,
    seconds: float,
    **more: Any,
) -> None:
    """Write the summary and the arrivals, and print a line on them."""
    summary = {
        "task": args.task,
        "code": coded.code.describe(),
        "workers": coded.code.workers,
        "processes": codedgrad.size(),
        "policy": getattr(policy(args), "describe", lambda: "exact")(),
        "partition": args.partition,
        "same_bits": args.same_bits,
        "faults": coded.faults.describe() if coded.faults else "none",
        "train_s": round(seconds, 3),
        **coded.record.summary(skip=min(5, coded.step // 2)),
        "late_rows": coded.record.late_rows,
        "accuracy": round(task.accuracy(), 4),
        "checksum": checksum(task.model),
        **more,
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    codedgrad.monitor.plot_arrivals(
        coded.record,
        coded.code.workers,
        args.out / "arrivals.png",
        title=f"{coded.code.describe()}; {summary['faults']}",
    )
    if "decoder" in summary:
        print(decoder(summary["decoder"]))
    print(
        f"{coded.step} steps of {1e3 * summary['step_s']:.1f} ms, test accuracy "
        f"{summary['accuracy']:.3f}; see {args.out}/"
    )


def decoder(figures: dict[str, Any]) -> str:
    """Return a line on the estimates of worker 0's slices."""
    line = f"{figures['settled']} slices estimated"
    if figures["settled"]:
        line += f", expected error {figures['predicted']:.3g}"
    if figures["known"]:
        line += f"; of {figures['known']} it is known: {figures['true']:.3g}"
    return line


if __name__ == "__main__":
    main()
