"""Training that settles by noise, against synchronous training with a smaller batch.

    mpirun -n 4 python benchmarks/bench_noise.py --task logistic --out FILE.json
    mpirun -n 8 python benchmarks/bench_noise.py --task cnn --partition classes

`approximate(max_noise=0.25)` promises training as on a batch smaller by at most
1 / 1.25. So each seed trains a task three times from the same weights, with as many
steps: calm and exact with the whole batch, calm and exact with 0.8 of it, and with the
policy, no redundancy and the last worker 10 x slow. Passes sleep for as long as their
samples take, so that two cores are enough for eight workers. The loss is that of all
training samples, at the end of every tenth step; the gap is the difference of the
logarithms of two losses, by seed, in the mean over the second half, with its interval
of 95 %.

With `--partition classes` each worker has its own classes, and the accuracy on held-out
samples counts. FILE.json gets a part for each task, partition and number of workers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
from harness import COMM, arguments, environment, say
from torch import Tensor

import codedgrad
from codedgrad import codes
from codedgrad.lab.decoders import tasks

BATCH, SLOW, PASS_S, EVERY = 160, 10, 0.02, 10
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 95 % both ways, by seeds
NOISE = 0.25
CASES: dict[str, tuple[float, dict[str, Any]]] = {  # share of the batch, settings
    "exact, calm": (1.0, {}),
    "exact, calm, 0.8 of the batch": (1.0 / (1.0 + NOISE), {}),
    "max_noise, slow": (
        1.0,
        {
            "policy": codedgrad.approximate(max_noise=NOISE),
            "faults": f"slow:worker={COMM.size - 1},factor={SLOW}",
        },
    ),
}


class Run:
    """One training run of a task, the same on every worker."""

    def __init__(self, name: str, partition: str, seed: int) -> None:
        """Make the task and hold every fifth sample out."""
        task = tasks.task(name, seed)
        self.task, self.model = task, task.model
        held = torch.arange(len(task.x)) % 5 == 4
        self.train = task.x[~held], task.y[~held]
        self.test = task.x[held], task.y[held]
        self.seed, self.sorted = seed, {}
        if partition == "classes":
            by = task.classes[(~held).numpy()]
            self.sorted = {"partition": "fixed", "by": by}

    def steps(
        self, steps: int, share: float, settings: dict[str, Any], pass_s: float
    ) -> dict[str, Any]:
        """Train, and return what came of it."""
        batch = round(BATCH * share)
        sample_s = pass_s * COMM.size / BATCH
        sampler = codedgrad.ShardSampler(
            self.train, batch, seed=self.seed, **self.sorted
        )
        code = codes.uncoded(COMM.size)
        gradient = codedgrad.CodedGradient(self.model, code, **settings)
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=self.task.lr, momentum=0.9
        )

        def loss_fn(x: Tensor, y: Tensor) -> Tensor:
            time.sleep(sample_s * len(x))
            return self.task.loss(self.model(x), y)

        kept, epoch = [], 0
        codedgrad.barrier()
        begin = time.monotonic()
        while gradient.step < steps:
            sampler.set_epoch(epoch)
            epoch += 1
            for shards in gradient.steps(sampler):
                if shards.total < batch:
                    continue
                gradient.backward(loss_fn, shards)
                optimizer.step()
                optimizer.zero_grad()
                if gradient.step % EVERY == 0 or gradient.step == steps:
                    kept.append([p.detach().clone() for p in self.model.parameters()])
                if gradient.step == steps:
                    break
        codedgrad.barrier()
        out = {"step_s": (time.monotonic() - begin) / steps, **estimates(gradient)}
        gradient.close()
        out["losses"] = [self.loss_of(parameters) for parameters in kept]
        out["accuracy"] = self.accuracy()
        return out

    @torch.no_grad()
    def loss_of(self, parameters: list[Tensor]) -> float:
        """Return the loss of all training samples with these parameters."""
        for mine, kept in zip(self.model.parameters(), parameters, strict=True):
            mine.copy_(kept)
        x, y = self.train
        return float(self.task.loss(self.model(x), y))

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of right predictions on the samples held out."""
        x, y = self.test
        return float((self.model(x).argmax(-1) == y).float().mean())


def estimates(gradient: codedgrad.CodedGradient) -> dict[str, float]:
    """Return how often all workers' slices were settled, and with what noise."""
    counters = gradient._exchange.counters()
    mine = (counters["slices_settled"], counters["slices_decoded"])
    settled, decoded = (sum(n) for n in zip(*COMM.allgather(mine), strict=True))
    found = [e for own in COMM.allgather(gradient.record.estimates) for e in own]
    judged = codedgrad.monitor.record.judged(found)
    out = {"settled": settled / decoded}
    for name in ("missing", "noise", "true_noise"):
        if judged[name] is not None:
            out[name] = float(judged[name])
    return out


def interval(values: list[float]) -> list[float]:
    """Return the mean, and half the width of its interval of 95 %."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return [mean, math.inf]
    return [mean, STUDENT[n] * statistics.stdev(values) / math.sqrt(n)]


def gap(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Return the interval of how far the losses are above the others', as a share."""
    apart = []
    for mine, other in zip(runs, others, strict=True):
        logs = [
            math.log(a / b)
            for a, b in zip(mine["losses"], other["losses"], strict=True)
        ]
        apart.append(statistics.fmean(logs[len(logs) // 2 :]))
    return interval(apart)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Train all cases with all seeds."""
    steps, seeds = (12, 2) if args.toy else (args.steps, args.seeds)
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for seed in range(seeds):
        for case, (share, settings) in CASES.items():
            # The smaller batch is here for its losses only.
            pass_s = 0.0 if share < 1.0 else 1e-3 if args.toy else args.pass_s
            run = Run(args.task, args.partition, seed)
            runs[case].append(run.steps(steps, share, settings, pass_s))
    whole, smaller, noisy = (runs[case] for case in CASES)
    out: dict[str, Any] = {"steps": steps, "seeds": seeds, "pass_s": args.pass_s}
    for case, row in runs.items():
        out[case] = {
            name: [round(run[name], 5) for run in row]
            for name in row[0]
            if name != "losses" and all(name in run for run in row)
        }
        out[case]["last_loss"] = [round(run["losses"][-1], 5) for run in row]
    out["step_over_calm"] = round(
        statistics.fmean(run["step_s"] for run in noisy)
        / statistics.fmean(run["step_s"] for run in whole),
        3,
    )
    out["gap_to_smaller_batch"] = [round(x, 4) for x in gap(noisy, smaller)]
    out["gap_to_whole_batch"] = [round(x, 4) for x in gap(noisy, whole)]
    out["accuracy_points_over_calm"] = [
        round(100 * x, 2)
        for x in interval(
            [a["accuracy"] - b["accuracy"] for a, b in zip(noisy, whole, strict=True)]
        )
    ]
    return out


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure one task; worker 0 prints, and adds to the file."""
    parser = arguments(str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", choices=tasks.TASKS, default="logistic")
    parser.add_argument("--partition", choices=("fresh", "classes"), default="fresh")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5, help="2 to 5")
    parser.add_argument("--pass_s", type=float, default=PASS_S, help="of a calm pass")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    codedgrad.init()
    results = measured(args)
    say(json.dumps(results, indent=1))
    if COMM.rank == 0 and args.out is not None:
        parts = {}
        if args.out.exists():
            parts = json.loads(args.out.read_text())["results"]
        part = f"{args.task}-{args.partition}-{COMM.size}"
        parts[part] = {"environment": environment(), **results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = {"benchmark": "bench_noise", "results": parts}
        args.out.write_text(json.dumps(text, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
