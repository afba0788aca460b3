"""Workers that are killed, over sockets: what the others lose by it.

    python benchmarks/bench_killed.py --out FILE.json

It starts each job by itself. Passes are 50 ms sleeps, so that workers which share cores
do not slow one another. One worker of five, worker 0, or two at once are killed, at
several moments of a pass; then, in `--chaos` jobs, random ones at random moments, until
one is left. The bits are compared with those of a run without a fault.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad.job import environment
from codedgrad.job.sockets.supervisor import LOST

PASS_S, STEPS, CALM_STEPS, WORKERS = 0.05, 40, 20, 5
SAMPLES, WIDTH = 8, 2000
LIMIT_S = 120.0
WAYS = ("SIGKILL", "SIGSEGV", "exit")


class Death(NamedTuple):
    """Who dies when: so many passes after the step's begin."""

    worker: int
    step: int
    passes: float
    way: str = "SIGKILL"


def die(way: str) -> None:
    """End this process, by a signal or an exit."""
    if way == "exit":
        os._exit(1)
    os.kill(os.getpid(), signal.Signals[way])


def worker(folder: Path, pass_s: float, plan: list[Death]) -> None:
    """Train; write a digest, and how long each step took, to FOLDER/end.RANK."""
    torch.set_num_threads(1)
    codedgrad.init(timeout_s=60)
    rank, n = codedgrad.rank(), codedgrad.size()
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8 * n, 4), torch.randint(0, 3, (8 * n,)))
    model = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    coded = codedgrad.CodedGradient(model, same_bits=True, bucket_mb=0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sampler = codedgrad.ShardSampler(data, SAMPLES * n)
    deaths = {death.step: death for death in plan if death.worker == rank}

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(pass_s * len(x) / SAMPLES)
        return nn.functional.cross_entropy(model(x), y)

    seconds = []
    while coded.step < STEPS:
        sampler.set_epoch(coded.step)
        for shards in coded.steps(sampler):
            if (death := deaths.get(coded.step)) is not None:
                timer = threading.Timer(death.passes * pass_s, die, (death.way,))
                timer.daemon = True
                timer.start()
            begin = time.monotonic()
            coded.backward(loss_fn, shards)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.monotonic() - begin)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    text = json.dumps({"bits": digest.hexdigest(), "seconds": seconds})
    (folder / f"end.{rank}").write_text(text)


def run(plan: list[Death], pass_s: float = PASS_S) -> tuple[int, dict[int, Any], str]:
    """Run a job; return its status, what each worker wrote, and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [folder, str(pass_s), json.dumps(plan)]
        job = subprocess.run(
            [
                *("timeout", "--kill-after=5", str(LIMIT_S), sys.executable),
                *("-m", "codedgrad", "run", "-n", str(WORKERS)),
                *("--transport", "socket", __file__, "--worker", *words),
            ],
            env=environment.without_launcher(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        ends = {int(f.suffix[1:]): f for f in Path(folder).glob("end.*")}
        found = {rank: json.loads(f.read_text()) for rank, f in sorted(ends.items())}
    return job.returncode, found, job.stdout


def scenario(plan: list[Death], bits: str) -> dict[str, Any]:
    """Run a job with these deaths; `bits` are those of a calm one.

    Raises:
        SystemExit: somebody else ended, or the bits differ.
    """
    status, found, said = run(plan)
    dead = {death.worker for death in plan}
    left = {rank for rank in range(WORKERS) if rank not in dead}
    same = {end["bits"] for end in found.values()} == {bits}
    if status != LOST or not left <= set(found) or not same:
        raise SystemExit(
            f"{plan} went wrong: {status}, {sorted(found)}, {same}\n{said}"
        )
    first = min(death.step for death in plan)
    every = [end["seconds"] for rank, end in found.items() if rank in left]
    usual = statistics.median(s for seconds in every for s in seconds[3:first])
    longest = max(s for seconds in every for s in seconds[first - 1 :])
    after = statistics.median(s for seconds in every for s in seconds[first + 2 :])
    return {
        "deaths": [death._asdict() for death in plan],
        "usual_step_ms": round(usual * 1e3, 2),
        "longest_over_usual": round(longest / usual, 3),
        "afterwards_over_usual": round(after / usual, 3),
        "bound_over_usual": round(WORKERS / len(left), 3),
        "same_bits_as_calm": same,
    }


def chaos(seed: int) -> list[Death]:
    """Return random deaths; one worker is left."""
    draw = random.Random(seed)
    order = draw.sample(range(WORKERS), WORKERS - 1)
    return [
        Death(w, draw.randrange(3, STEPS), draw.random() * 1.5, draw.choice(WAYS))
        for w in order
    ]


def main() -> None:
    """Run the scenarios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="one random job")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--chaos", type=int, default=5, help="so many random jobs")
    parser.add_argument("--seed", type=int, default=0, help="of the first random job")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, pass_s, plan = args.worker
        worker(Path(folder), float(pass_s), [Death(*one) for one in json.loads(plan)])
        return
    status, found, said = run([], 0.001)
    if status != 0 or len({end["bits"] for end in found.values()}) != 1:
        raise SystemExit(f"the calm run went wrong: {status}\n{said}")
    bits = found[0]["bits"]
    results: dict[str, Any] = {}
    who = {"one": [3], "worker_0": [0], "two": [1, 2]}
    for name, workers in () if args.toy else who.items():
        for moment in (0.1, 0.5, 0.97):
            plan = [Death(w, CALM_STEPS, moment) for w in workers]
            results[f"{name}_at_{moment}"] = scenario(plan, bits)
            print(f"{name} at {moment}: {results[f'{name}_at_{moment}']}", flush=True)
    for seed in range(args.seed, args.seed + (1 if args.toy else args.chaos)):
        results[f"chaos_{seed}"] = scenario(chaos(seed), bits)
        print(f"chaos {seed}: {results[f'chaos_{seed}']}", flush=True)
    if args.out is not None:
        import harness  # which loads MPI

        about = {**harness.environment(), "workers": WORKERS, "threads_per_worker": 1}
        text = {"benchmark": "bench_killed", "environment": about, "results": results}
        args.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
