"""The measurements of bench_anytime: arrivals of a log, gradients of a recorded run."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from owner import Look, Owner

from codedgrad import codes
from codedgrad.lab import simulate, traces
from codedgrad.lab.decoders import record, replay, tasks
from codedgrad.lab.decoders.learned import Learned
from codedgrad.lab.decoders.rescale import Rescale
from codedgrad.lab.simulate.helpers import Helping, Lists, lists_of

if TYPE_CHECKING:
    from pathlib import Path

    from codedgrad.lab.simulate.helpers import Play
    from codedgrad.lab.simulate.lag import Late

MICRO, PATIENCE, WINDOW = 4, 0.1, 32
WARM_UP = 10  # steps that wait for everybody and are left out of every figure
LOGS = {  # family: (published logs, a shipped profile, simulated workers)
    "AWS Lambda": (
        (
            "aws_lambda_cnn_desktop4_b2048_canada",
            "aws_lambda_cnn_desktop2_b256_canada",
            "aws_lambda_cnn_mbp2_b256_sydney",
        ),
        "aws_lambda",
        64,
    ),
    "EC2": (("ec2_gradient_coding_2", "ec2_gradient_coding_4"), "ec2", 15),
    "Alibaba": (("alibaba_pai_minibatch_job4",), "shared_gpus", 10),
}
DECODERS = {"learned": Learned, "rescale": Rescale}


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        decoder: a name of DECODERS.
        max_error: the bound at which an owner settles.
        copies: back-ups of every micro-batch; 0 for none.
    """

    decoder: str
    max_error: float
    copies: int

    @property
    def key(self) -> str:
        """Name of the point in the results."""
        backups = f" back-ups {self.copies}" if self.copies else ""
        return f"{self.decoder} {self.max_error:g}{backups}"


def times_of(family: str, folder: Path | None, steps: int) -> dict[str, simulate.Times]:
    """Return the logs of a family; without the folder, one drawn from its profile."""
    names, profile, workers = LOGS[family]
    if folder is None:
        drawn = traces.Profile.load(profile).sample(steps, workers, seed=1)
        return {f"profile {profile}": simulate.from_log(drawn)}
    times = {}
    for name in names:
        log = traces.read(folder / f"{name}.npz")
        log = log.take(min(workers, log.size))
        times[name] = simulate.from_log(log).first(steps)
    return times


@functools.lru_cache(2)
def recording(task: str, partition: str, shards: int, steps: int) -> replay.Recording:
    """Record a real run, micro-batch by micro-batch, with 16 samples a shard."""
    run = record.Run(
        partition, shards=shards, steps=steps, batch=16, micro=MICRO, seed=shards
    )
    arrays = record.record(tasks.task(task), run)
    grads = arrays["grads"]
    return replay.Recording(
        grads.reshape(len(grads), shards, MICRO, -1), arrays["tensor_sizes"]
    )


@dataclass
class Settle:
    """Ends steps by the decoder's bound; `simulate.helpers` calls it in every step.

    Attributes:
        run: the recorded gradients.
        owner: what the owner remembers and has learned.
        max_error: the bound at which it settles.
        looks: how often it has decoded.
        first: its first look in the present step.
        rows: the figures of every step.
        begun: for each worker that goes on with a late pass, the step of the pass.
    """

    run: replay.Recording
    owner: Owner
    max_error: float
    looks: int = 0
    first: Look | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    begun: dict[int, int] = field(default_factory=dict)

    def __call__(self, play: Play, covered: float, lag: Late) -> float:
        """Return when the step is over."""
        step = len(self.rows)
        since = lag.since
        for w in np.flatnonzero(since == 1).tolist():
            self.begun[w] = step - 1
        for w in [w for w in self.begun if since[w] == 0]:
            del self.begun[w]  # the worker has skipped to the present step
        self._close(step)
        grads = self.run.grads[step].astype(np.float64)
        arrival = play.arrivals().reshape(grads.shape[:2])
        now, look, self.first = covered, None, None
        if self.max_error > 0.0:
            first = play.half() + PATIENCE
            now, look = self._settle(grads, arrival, first, covered)
        if look is None:
            now = covered
            look = self.owner.look(grads.mean(axis=1), np.ones(len(grads)))
        self.owner.take(step, look, first=self.first)
        self._judge(grads, look)
        done = lag.rest + lag.work <= now
        for w in [w for w in self.begun if done[w]]:
            old = self.begun.pop(w)
            self.owner.late(old, w, self.run.grads[old, w].mean(axis=0, dtype=float))
        return now

    def _close(self, step: int) -> None:
        """Close the steps of which no row is on its way any more."""
        for old in range(max(0, step - WINDOW), step):
            if old not in self.begun.values():
                self.owner.close(old)

    def _settle(
        self, grads: Any, arrival: Any, first: float, covered: float
    ) -> tuple[float, Look | None]:
        """Look from `first` on; return when the step ends and what it settles for.

        While the owner warms up it looks once, and never settles.
        """
        now = first
        moments = np.unique(arrival)
        while now < covered:
            arrived = arrival <= now + 1e-12
            count = arrived.sum(axis=1)
            rows = (grads * arrived[:, :, None]).sum(axis=1)
            rows /= np.maximum(count, 1)[:, None]
            look = self.owner.look(rows, count / MICRO)
            self.looks += 1
            self.first = self.first or look
            if len(self.rows) < WARM_UP:
                break
            if look.bound <= self.max_error:
                return now, look
            # By the law the bound falls with rho / (1 - rho); look a bit earlier.
            odds = look.arrivals.missing / (1.0 - look.arrivals.missing)
            odds *= min(0.95, 1.2 * self.max_error / look.bound)
            enough = math.ceil(arrival.size / (1.0 + odds) - 1e-9)
            place = min(enough, arrival.size) - 1
            goal = np.partition(arrival.ravel(), place)[place]
            later = moments[moments > now + 1e-12]
            now = max(float(goal), float(later[0]) if len(later) else covered)
        return covered, None

    def _judge(self, grads: Any, look: Look) -> None:
        truth = grads.mean(axis=(0, 1))
        wrong = float(((look.gradient - truth) ** 2).sum() / (truth @ truth))
        missing = look.arrivals.missing
        self.rows.append(
            {
                "true": wrong if missing > 0.0 else 0.0,
                "predicted": look.predicted,
                "bound": look.bound,
                "missing": missing,
            }
        )


def measure(
    times: simulate.Times, run: replay.Recording, point: Point
) -> dict[str, float]:
    """Return the figures of one point; benchmarks/README.md defines them."""
    n = times.shape[1]
    lists = Lists(MICRO, ((),) * n)
    if point.copies:
        lists = lists_of(codes.spread(n, micro=MICRO, copies=point.copies))
    lists = Lists(MICRO, lists.backups, streams=True)
    decoder = DECODERS[point.decoder](len(run.bounds) - 1)
    settle = Settle(run, Owner(n, run.bounds, decoder), point.max_error)
    out = simulate.helpers.simulate(
        times, simulate.Comm(), lists, Helping(PATIENCE, WINDOW), settle
    )
    skip = min(WARM_UP, len(out.step) - 1)
    row = {k: np.array([r[k] for r in settle.rows])[skip:] for k in settle.rows[0]}
    settled = row["missing"] > 0.0
    some = bool(settled.any())
    true, predicted = row["true"][settled], row["predicted"][settled]
    above = float((true > point.max_error).mean()) if some else 0.0
    return {
        "mean_step": float(out.step[skip:].mean()),
        "mean_error": float(row["true"].mean()),
        "settled": int(settled.sum()),
        "settled_share": float(settled.mean()),
        "missing": float(row["missing"].mean()),
        "exceeded": above,
        "bound_exceeded": float((true > row["bound"][settled]).mean()) if some else 0.0,
        "sum_predicted": float(predicted.sum()),
        "sum_true": float(true.sum()),
        "calibration": float(predicted.sum() / true.sum()) if some else 1.0,
        "looks_per_step": settle.looks / len(out.step),
    }
