"""Who is in time in bench_time_to_loss, and what a step costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from loss_tasks import WORKERS

from codedgrad.lab import simulate, traces
from codedgrad.lab.simulate.lag import Late

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = 32
SCENARIOS = {  # name: workers that a step is not waited for
    "1 of 8, random": 1,
    "4 of 8, random": 4,
    "one always 10 x": 1,
    "Lambda log": 2,
    "EC2 log": 2,
}

LOGS = {  # scenario: (published log, shipped profile)
    "Lambda log": ("aws_lambda_cnn_desktop4_b2048_canada", "aws_lambda"),
    "EC2 log": ("ec2_gradient_coding_4", "ec2"),
}


@dataclass(frozen=True)
class Timeline:
    """Who is in time in every step, and which late rows come when.

    Attributes:
        arrived: bool [steps, n].
        late: by step, the (worker, step of the row) of the late rows that came since
            the step before.
        clocks: step times in median passes of "synchronous", "exact coded" and all
            other methods ("settled").
    """

    arrived: np.ndarray
    late: dict[int, list[tuple[int, int]]]
    clocks: dict[str, np.ndarray]


def timeline(scenario: str, steps: int, seed: int, folder: Path | None) -> Timeline:
    """Return a scenario's arrivals, which are the same for every decoder.

    `folder` has the published logs; without it they are drawn from profiles.
    """
    n, spare = WORKERS, SCENARIOS[scenario]
    random = np.random.default_rng(seed)
    ratios = np.ones((steps, n))
    if scenario in LOGS:
        name, profile = LOGS[scenario]
        if folder is None:
            log = traces.Profile.load(profile).sample(steps, n, seed=seed)
        else:
            log = traces.read(folder / f"{name}.npz")
            log = log.take(n, seed)
        times = simulate.from_log(log)
        first = int(random.integers(times.shape[0]))
        ratios = times.pace[(first + np.arange(steps)) % times.shape[0]]
    elif "random" in scenario:
        for row in ratios:
            row[random.choice(n, spare, replace=False)] = 2.0
    else:
        ratios[:, random.integers(n)] = 10.0
    times = simulate.from_ratios(ratios)
    clocks = {
        "synchronous": simulate.run("sync", times).step,
        "exact coded": simulate.run("spread:micro=4,copies=2", times).step,
    }
    if "random" in scenario:  # here the row is held up, not the worker
        arrived = ratios == 1.0
        late = {
            t + 1: [(int(w), t) for w in np.flatnonzero(~arrived[t])]
            for t in range(steps - 1)
        }
        return Timeline(arrived, late, {**clocks, "settled": np.ones(steps)})
    arrived, late, settled = _play(ratios, spare)
    return Timeline(arrived, late, {**clocks, "settled": settled})


def _play(ratios: np.ndarray, spare: int) -> tuple[np.ndarray, Any, np.ndarray]:
    """Play steps that end with the (n - spare)-th worker.

    A worker that is late again and again goes on with its late pass.
    """
    steps, n = ratios.shape
    lag, none = Late(n, WINDOW), np.zeros(n)
    begun: dict[int, int] = {}
    arrived, settled = np.zeros((steps, n), bool), np.zeros(steps)
    late: dict[int, list[tuple[int, int]]] = {}
    for t, pace in enumerate(ratios):
        begin = lag.begin(none)
        begun |= {int(w): t - 1 for w in np.flatnonzero(lag.since == 1)}
        begun = {w: s for w, s in begun.items() if lag.since[w] > 0}
        finish = begin + pace
        settled[t] = np.partition(finish, n - spare - 1)[n - spare - 1]
        arrived[t] = finish <= settled[t]
        for w in [w for w in begun if begin[w] <= settled[t]]:
            late.setdefault(t + 1, []).append((w, begun.pop(w)))
        lag.end(none, float(settled[t]), pace)
    return arrived, late, settled
