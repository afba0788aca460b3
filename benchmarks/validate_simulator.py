"""The simulator against live runs: replayed logs, 8 workers, sleeping passes.

    mpirun -n 8 python benchmarks/validate_simulator.py --traces FOLDER --out FILE.json

For every log and policy it compares the measured mean and 95th percentile of the step
with the predicted ones. The simulator knows only the pass and the exchange of a calm
run.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import COMM, arguments, say, write
from jobs import Job
from step_methods import MICRO, Coded

import codedgrad
from codedgrad import codes
from codedgrad.lab import simulate, traces

LOGS = (
    "aws_lambda_cnn_desktop2_b256_canada",
    "ec2_gradient_coding_4",
    "alibaba_pai_minibatch_job4",
)


def own_log(steps: int) -> np.ndarray:
    """Return a small log of roaming stragglers, for machines without published ones."""
    random = np.random.default_rng(0)
    slow = random.random((steps, COMM.size)) < 0.1
    return np.where(slow, random.uniform(2.0, 8.0, slow.shape), 1.0)


def ratios_of(folder: Path | None, name: str, steps: int) -> np.ndarray:
    """Return ratios [steps, workers] that can be injected.

    None is below 1, because no worker can be made faster than it is.
    """
    if folder is None:
        return own_log(steps)
    log = traces.read(folder / f"{name}.npz").take(COMM.size, seed=1)
    return np.maximum(1.0, np.nan_to_num(log.ratios()[:steps], nan=1.0))


def live(coded: Coded, ratios: np.ndarray) -> list[float]:
    """Replay the ratios and return worker 0's seconds of every step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.npz"
        # A step replays the row of its number modulo the number of rows.
        begin = coded.gradient.step % len(ratios)
        np.savez(path, compute=np.roll(ratios, begin, axis=0))
        coded.straggle(f"replay:file={path},model=rate")
    COMM.Barrier()
    count = len(coded.gradient.record.reports)
    for _ in range(len(ratios)):
        coded.step()
    coded.straggle("")
    return [r.step_s for r in coded.gradient.record.reports[count:]]


def main() -> None:
    """Calibrate, then replay every log under every policy."""
    parser = arguments(str(__doc__))
    parser.add_argument("--traces", type=Path, help="folder of the published logs")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    steps = 6 if args.toy else args.steps
    torch.set_num_threads(1)
    codedgrad.init()
    n = COMM.size
    policies = {
        "sync": codes.uncoded(n, micro=MICRO),
        f"spread:micro={MICRO},copies=2": codes.spread(n, micro=MICRO, copies=2),
        "fractional:copies=2": codes.fractional(n, copies=2, micro=MICRO),
    }
    compared = {k: Coded(Job("sleep", 32 * n), code) for k, code in policies.items()}
    results: dict[str, Any] = {}
    for name in LOGS if args.traces else ("own",):
        ratios = ratios_of(args.traces, name, steps)
        # The injector divides by the step's median once more, and makes none faster.
        felt = np.maximum(1.0, ratios / np.median(ratios, axis=1, keepdims=True))
        for policy, coded in compared.items():
            for _ in range(4 if args.toy else 12):
                coded.step()
            calm = coded.gradient.record.reports[-8:]
            passes = 2.0 if policy.startswith("fractional") else 1.0
            unit = statistics.median(r.compute_s for r in calm) / passes
            rest = max(0.0, statistics.median(r.step_s for r in calm) - passes * unit)
            measured = live(coded, ratios)
            times = simulate.from_ratios(felt, "rate", unit)
            comm = simulate.Comm(alpha_s=rest / 2.0 / (n - 1), gradient_bytes=0.0)
            predicted = unit * simulate.run(policy, times, comm).step
            row = {
                "pass_ms": round(1e3 * unit, 2),
                "exchange_ms": round(1e3 * rest, 2),
                "mean_measured_ms": round(1e3 * statistics.fmean(measured), 2),
                "mean_predicted_ms": round(1e3 * float(predicted.mean()), 2),
                "p95_measured_ms": round(1e3 * float(np.quantile(measured, 0.95)), 2),
                "p95_predicted_ms": round(1e3 * float(np.quantile(predicted, 0.95)), 2),
            }
            for key in ("mean", "p95"):
                ratio = row[f"{key}_predicted_ms"] / row[f"{key}_measured_ms"]
                row[f"{key}_ratio"] = round(ratio, 3)
            results.setdefault(name, {})[policy] = row
            say(f"{name} {policy}: {row}")
    write(args.out, "validate_simulator", results)
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
