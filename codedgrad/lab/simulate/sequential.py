"""Policies that use earlier steps: SR-SGC, M-SGC, DSAG.

M. N. Krishnan, M. Ebrahimi, A. Khisti, "Sequential Gradient Coding for Straggler
Mitigation", ICLR 2023 (SR-SGC, M-SGC); A. Severinson, E. Rosnes, S. El Rouayheb,
A. Graell i Amat, "DSAG: A mixed synchronous-asynchronous iterative method for
straggler-resilient learning", 2023.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.simulate.lag import Lag
from codedgrad.lab.simulate.outcome import Comm, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from codedgrad.lab.simulate.times import Times


def sr_sgc(
    times: Times,
    comm: Comm,
    burst: int = 1,
    span: int = 2,
    stragglers: int = 2,
    slack: float = 1.0,
) -> Outcome:
    """Selective repetition: a gradient code whose failed tasks are done again later.

    For bursts of at most `burst` steps (B) of at most `stragglers` workers (lambda)
    in any `span` steps (W; B divides W - 1) a code for s = ceil(B lambda / (W - 1 + B))
    is enough: load s + 1 passes. A worker whose task of step t - B is missing there
    does it again instead of the current one. Gradients come up to B steps late.

    A step ends (1 + slack) times after the first worker, or when all but s results of
    the step B ago are there, whichever is later.
    """
    n = times.shape[1]
    _check(burst, span, stragglers, slack, n)
    if (span - 1) % burst:
        raise ConfigError(
            f"sr_sgc: burst={burst} must divide span - 1 = {span - 1} (the paper's "
            f"W = x B + 1)"
        )
    s = math.ceil(burst * stragglers / (span - 1 + burst))
    load = s + 1.0
    missing: list[NDArray[np.bool_]] = []

    def one(finish: NDArray[np.float64]) -> float:
        step = (1.0 + slack) * float(finish.min())
        again = np.zeros(n, bool)
        if len(missing) >= burst:
            before = np.flatnonzero(missing[-burst])
            again[before[: max(0, len(before) - s)]] = True
        if again.any():  # their results are needed now, whatever they take
            step = max(step, float(finish[again].max()))
        step = min(step, float(finish.max()))
        missing.append((finish > step) | again)
        return step

    return _walk(times, comm, load, one, {"delay_steps": burst})


def m_sgc(
    times: Times,
    comm: Comm,
    burst: int = 1,
    span: int = 2,
    stragglers: int = 2,
    slack: float = 1.0,
) -> Outcome:
    """Multiplexed: tasks of several steps coded across time, at a smaller load.

    Load (lambda + 1)(W - 1 + B) / (B + (W - 1)(lambda + 1)) passes. The step waits for
    a late worker unless, with it late, all the late ones fit the design: in any W
    steps at most lambda workers late, each within B steps. Gradients come up to
    W - 2 + B steps late.
    """
    n = times.shape[1]
    _check(burst, span, stragglers, slack, n)
    b, w, lam = burst, span, stragglers
    load = (lam + 1) * (w - 1 + b) / (b + (w - 1) * (lam + 1))
    late = np.zeros((w, n), bool)  # the last W steps, the present one last

    def one(finish: NDArray[np.float64]) -> float:
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

    return _walk(times, comm, load, one, {"delay_steps": w - 2 + b})


def dsag(times: Times, comm: Comm, wait: float = 0.9) -> Outcome:
    """The fastest `wait` share of fresh gradients; the rest keep their last one.

    A worker that is late goes on with its task into the next steps, and its gradient
    counts, stale, from then on. T = the ceil(wait n)-th of the fresh ones.
    """
    steps, n = times.shape
    if not 0.0 < wait <= 1.0:
        raise ConfigError(f"dsag: wait must be in (0, 1], got {wait}")
    need = max(1, math.ceil(wait * n))
    free = np.zeros(n)  # when the worker is done with an older task
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
    one: Callable[[NDArray[np.float64]], float],
    notes: dict[str, int],
) -> Outcome:
    """Step by step, since each depends on those before."""
    steps, n = times.shape
    lag = Lag(n, window=steps + 1)
    out = np.empty(steps)
    for s in range(steps):
        finish = lag.begin(times.stall[s]) + load * times.pace[s]
        out[s] = one(finish)
        lag.end(times.stall[s], out[s])
    exchange = 2.0 * comm.hop_s(n) / times.median_s
    return Outcome(out + exchange, np.full(steps, load - 1.0), 1.0, 0.0, dict(notes))


def _check(burst: int, span: int, stragglers: int, slack: float, n: int) -> None:
    if burst < 1 or span <= burst or not 0 <= stragglers < n or slack < 0.0:
        raise ConfigError(
            f"wanted 1 <= burst < span, 0 <= stragglers < {n}, slack >= 0; got "
            f"burst={burst}, span={span}, stragglers={stragglers}, slack={slack}"
        )
