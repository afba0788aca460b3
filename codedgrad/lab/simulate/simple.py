"""Policies in which a step's time T is an order statistic of the workers' times t_i.

sync        T = max_i t_i, and every worker does one pass (Horovod, DDP).
backup      T = the (n - b)-th of the t_i; the last b are dropped and the rest rescaled
            (Chen et al. 2016, "Revisiting Distributed Synchronous SGD").
fractional  T = the largest over the groups of the smallest in the group, and every
            worker does `copies` passes (Tandon et al. 2017).
cyclic      T = the (n - s)-th of the t_i, and every worker does s + 1 passes
            (Tandon et al. 2017).
deadline    T = min(d, max_i t_i); late workers are dropped.
dropcompute T is the same, but micro-batches that are finished count
            (Giladi et al. 2023, "DropCompute").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codedgrad.codes import fractional as fractional_code
from codedgrad.errors import ConfigError
from codedgrad.lab.simulate.lag import Lag
from codedgrad.lab.simulate.outcome import Comm, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from codedgrad.lab.simulate.times import Times

    Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def by_rule(times: Times, load: float, rule: Rule) -> NDArray[np.float64]:
    """Return a step's time [steps] by `rule`.

    `rule` takes the times [steps, workers] at which the workers finish `load` passes.
    """
    if times.model == "rate":
        return rule(load * times.pace)
    lag = Lag(times.shape[1], window=times.shape[0] + 1)
    out = np.empty(times.shape[0])
    for s in range(times.shape[0]):
        finish = lag.begin(times.stall[s]) + load * times.pace[s]
        out[s] = float(rule(finish[None])[0])
        lag.end(times.stall[s], out[s])
    return out


def _outcome(
    times: Times, comm: Comm, step: NDArray[np.float64], load: float, lost: float = 0.0
) -> Outcome:
    exchange = 2.0 * comm.hop_s(times.shape[1]) / times.median_s
    return Outcome(step + exchange, np.full(len(step), load - 1.0), 1.0, lost)


def sync(times: Times, comm: Comm) -> Outcome:
    """Play steps that wait for everybody."""
    return _outcome(times, comm, times.alone().max(axis=1), 1.0)


def _smallest(count: int) -> Rule:
    return lambda t: np.partition(t, count - 1, axis=1)[:, count - 1]


def backup(times: Times, comm: Comm, *, drop: int = 1) -> Outcome:
    """Play steps that go on without the last `drop` workers."""
    n = times.shape[1]
    if not 0 <= drop < n:
        raise ConfigError(f"backup: drop must be 0 to {n - 1}, got {drop}")
    step = by_rule(times, 1.0, _smallest(n - drop))
    return _outcome(times, comm, step, 1.0, drop / n)


def fractional(times: Times, comm: Comm, *, copies: int = 2) -> Outcome:
    """Play the classical code in which every shard is computed `copies` times."""
    n = times.shape[1]
    fractional_code(n, copies)  # raises where copies does not divide n

    def rule(t: NDArray[np.float64]) -> NDArray[np.float64]:
        groups = t.reshape(len(t), n // copies, copies)
        return np.asarray(groups.min(axis=2).max(axis=1))

    return _outcome(times, comm, by_rule(times, copies, rule), copies)


def cyclic(times: Times, comm: Comm, *, stragglers: int = 1) -> Outcome:
    """Play the classical code that any n - s of the workers decode."""
    n = times.shape[1]
    if not 0 <= stragglers < n:
        raise ConfigError(f"cyclic: stragglers must be 0 to {n - 1}, got {stragglers}")
    load = stragglers + 1.0
    step = by_rule(times, load, _smallest(n - stragglers))
    return _outcome(times, comm, step, load)


def deadline(times: Times, comm: Comm, *, at: float = 1.5) -> Outcome:
    """Play steps that drop who is not done at `at` medians; the first one is kept."""
    _check_deadline(at)

    def rule(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(t.min(axis=1), np.minimum(at, t.max(axis=1))))

    step = by_rule(times, 1.0, rule)
    lost = float((times.alone() > step[:, None]).mean())
    return _outcome(times, comm, step, 1.0, lost)


def dropcompute(
    times: Times, comm: Comm, *, at: float = 1.5, micro: int = 8
) -> Outcome:
    """Play steps in which all workers stop at `at` medians; finished work counts."""
    _check_deadline(at)

    def rule(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.minimum(at, t.max(axis=1)))

    step = by_rule(times, 1.0, rule)
    done = np.floor(micro * (step[:, None] - times.stall) / times.pace + 1e-9) / micro
    lost = 1.0 - float(np.clip(done, 0.0, 1.0).mean())
    return _outcome(times, comm, step, 1.0, lost)


def _check_deadline(at: float) -> None:
    if not at > 0.0:
        raise ConfigError(f"the deadline must be positive (step medians), got {at}")
