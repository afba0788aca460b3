"""Policies that carry work from step to step: SR-SGC, M-SGC, DSAG.

M. N. Krishnan, M. Ebrahimi, A. Khisti, "Sequential Gradient Coding for Straggler
Mitigation", ICLR 2023 (SR-SGC, M-SGC); A. Severinson, E. Rosnes, S. El Rouayheb,
A. Graell i Amat, "DSAG: A mixed synchronous-asynchronous iterative method for
straggler-resilient learning", 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.simulate.lag import Lag
from codedgrad.lab.simulate.outcome import Comm, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from codedgrad.lab.simulate.times import Times


@dataclass(frozen=True)
class Design:
    """What a sequential code is designed for: bursts of slowness, in the paper's words.

    Attributes:
        burst: B, steps that a worker may be late in a row.
        span: W, steps of the sliding window over which stragglers are counted.
        stragglers: lambda, workers that may be late within a window.
        slack: mu; who takes longer than (1 + slack) times the first worker is late.
    """

    burst: int
    span: int
    stragglers: int
    slack: float

    def check(self, workers: int) -> Design:
        """Return this design.

        Raises:
            ConfigError: a number is out of range for so many workers.
        """
        b, w, lam, slack = self.burst, self.span, self.stragglers, self.slack
        if b < 1 or w <= b or not 0 <= lam < workers or slack < 0.0:
            raise ConfigError(
                f"wanted 1 <= burst < span, 0 <= stragglers < {workers}, slack >= 0; "
                f"got burst={b}, span={w}, stragglers={lam}, slack={slack}"
            )
        return self


def sr_sgc(
    times: Times,
    comm: Comm,
    *,
    burst: int = 1,
    span: int = 2,
    stragglers: int = 2,
    slack: float = 1.0,
) -> Outcome:
    """Play selective repetition: failed tasks of a gradient code are done again later.

    The settings are those of `Design`; B must divide W - 1. A code for
    s = ceil(B lambda / (W - 1 + B)) stragglers is then enough, whose load is s + 1
    passes. A worker whose result of step t - B is missing computes it again instead of
    the current one, so gradients come up to B steps late.

    A step ends at (1 + slack) times the first worker's time, or when all but s results
    of the step B ago are there, whichever is later.
    """
    n = times.shape[1]
    design = Design(burst, span, stragglers, slack).check(n)
    if (span - 1) % burst:
        raise ConfigError(
            f"sr_sgc: burst={burst} must divide span - 1 = {span - 1} (the paper's "
            f"W = x B + 1)"
        )
    s = math.ceil(burst * design.stragglers / (span - 1 + burst))
    load = s + 1.0
    missing: list[NDArray[np.bool_]] = []

    def end_of(finish: NDArray[np.float64]) -> float:
        step = (1.0 + slack) * float(finish.min())
        again = np.zeros(n, bool)
        if len(missing) >= burst:
            before = np.flatnonzero(missing[-burst])
            again[before[: max(0, len(before) - s)]] = True
        if again.any():  # these results are needed now, however long they take
            step = max(step, float(finish[again].max()))
        step = min(step, float(finish.max()))
        missing.append((finish > step) | again)
        return step

    return _walk(times, comm, load, end_of, notes={"delay_steps": burst})


def m_sgc(
    times: Times,
    comm: Comm,
    *,
    burst: int = 1,
    span: int = 2,
    stragglers: int = 2,
    slack: float = 1.0,
) -> Outcome:
    """Play the multiplexed code: tasks of several steps are coded across time.

    The settings are those of `Design`. The load is
    (lambda + 1)(W - 1 + B) / (B + (W - 1)(lambda + 1)) passes, less than that of
    selective repetition. A step waits for a late worker unless the design covers it:
    in any W steps at most lambda workers are late, each within B steps. Gradients come
    up to W - 2 + B steps late.
    """
    n = times.shape[1]
    Design(burst, span, stragglers, slack).check(n)
    b, w, lam = burst, span, stragglers
    load = (lam + 1) * (w - 1 + b) / (b + (w - 1) * (lam + 1))
    late = np.zeros((w, n), bool)  # in the last W steps, the present one last

    def end_of(finish: NDArray[np.float64]) -> float:
        late[:-1] = late[1:]
        late[-1] = False
        limit = (1.0 + slack) * float(finish.min())
        for worker in np.argsort(-finish, kind="stable"):
            if finish[worker] <= limit:
                break
            late[-1, worker] = True
            rows = np.flatnonzero(late[:, worker])
            fits = rows[-1] - rows[0] < b and int(late.any(axis=0).sum()) <= lam
            if not fits:
                late[-1, worker] = False
                return float(finish[worker])
        return float(finish[~late[-1]].max())

    return _walk(times, comm, load, end_of, notes={"delay_steps": w - 2 + b})


def dsag(times: Times, comm: Comm, *, wait: float = 0.9) -> Outcome:
    """Play DSAG: a step waits for a share of fresh gradients and reuses the rest.

    A step ends with the ceil(wait n)-th fresh gradient. A late worker goes on with its
    task into the next steps; until it is done its last gradient counts, and from then
    on the new one does, which is stale.
    """
    steps, n = times.shape
    if not 0.0 < wait <= 1.0:
        raise ConfigError(f"dsag: wait must be in (0, 1], got {wait}")
    need = max(1, math.ceil(wait * n))
    free = np.zeros(n)  # the moment at which a worker is done with an older task
    out = np.empty(steps)
    stale = 0
    for s in range(steps):
        finish = free + times.stall[s] + times.pace[s]
        out[s] = float(np.partition(finish, need - 1)[need - 1])
        began = free < out[s]
        stale += int((finish > out[s]).sum())
        free = np.maximum(0.0, np.where(began, finish, free) - out[s])
    exchange = 2.0 * comm.hop_s(n) / times.median_s
    return Outcome(
        out + exchange,
        np.zeros(steps),
        1.0,
        0.0,
        {"stale_share": stale / (steps * n)},
    )


def _walk(
    times: Times,
    comm: Comm,
    load: float,
    end_of: Callable[[NDArray[np.float64]], float],
    *,
    notes: dict[str, Any],
) -> Outcome:
    """Play step by step, since each depends on those before.

    `end_of` returns a step's length from the times [workers] at which the workers
    finish `load` passes.
    """
    steps, n = times.shape
    lag = Lag(n, window=steps + 1)
    out = np.empty(steps)
    for s in range(steps):
        finish = lag.begin(times.stall[s]) + load * times.pace[s]
        out[s] = end_of(finish)
        lag.end(times.stall[s], out[s])
    exchange = 2.0 * comm.hop_s(n) / times.median_s
    return Outcome(out + exchange, np.full(steps, load - 1.0), 1.0, 0.0, dict(notes))
