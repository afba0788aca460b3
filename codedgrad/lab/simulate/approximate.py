"""Owners that settle: late workers are left out once the expected error allows it.

Gradients are not simulated. The relative squared error of a mean of which the share rho
is missing is taken to be

    e(rho) = noise * rho / (1 - rho).

This is what rescaling gives over fresh IID shards. `noise` is the variance of the whole
batch's gradient over its squared length.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.lab.simulate.helpers import Helping, Lists, Play, lists_of, simulate

if TYPE_CHECKING:
    from codedgrad.lab.simulate.lag import Lag
    from codedgrad.lab.simulate.outcome import Comm, Outcome
    from codedgrad.lab.simulate.times import Times


class Settle:
    """Decides when the owners of a step settle.

    They settle at the first moment at which e(rho) <= max_error, but not before
    `patience` median passes after half of the shards are there.

    Attributes:
        lost, errors: rho and e(rho) of every step so far; 0 where the arrivals cover.
    """

    def __init__(self, max_error: float, patience: float, noise: float) -> None:
        """Take the settings of `approximate`.

        Raises:
            ConfigError: a number is negative, or the noise is not finite.
        """
        if not (max_error >= 0.0 and 0.0 <= noise < math.inf):
            raise ConfigError(
                f"approximate: wanted max_error >= 0 and a finite noise >= 0, got "
                f"max_error={max_error}, noise={noise}"
            )
        self.max_error, self.patience, self.noise = max_error, patience, noise
        self.lost: list[float] = []
        self.errors: list[float] = []

    def __call__(self, play: Play, over: float, _: Lag) -> float:
        """Return when the step ends, at most at `over`, when it is covered."""
        there = np.sort(play.arrivals())
        rho = 1.0 - np.arange(1, len(there) + 1) / len(there)
        first = float(there[self.noise * rho <= self.max_error * (1.0 - rho)][0])
        moment = min(over, max(play.half() + self.patience, first))
        settles = self.max_error > 0.0 and moment < over
        moment = moment if settles else over
        missing = float((there > moment).mean()) if settles else 0.0
        self.lost.append(missing)
        self.errors.append(self.noise * missing / (1.0 - missing))
        return moment


def approximate(
    times: Times,
    comm: Comm,
    *,
    max_error: float = 0.1,
    patience: float = 0.1,
    noise: float = 1.0,
    micro: int = 4,
    partial: int = 1,
    window: int = 16,
    copies: int = 0,
) -> Outcome:
    """Play spread repetition whose owners settle; without back-ups if copies = 0.

    With partial = 1 what a late worker has done counts, as finished micro-batches: so
    it is with `same_bits=True`; buckets of a whole pass come somewhat later, and are
    better information for their number. With max_error = 0
    the policy is exact, and is `spread` with as many copies. Helpers have the same
    patience as the owners.
    """
    if micro < 1 or copies < 0 or partial not in (0, 1) or window < 1:
        raise ConfigError(
            f"approximate: wanted micro, window >= 1, copies >= 0, partial 0 or 1; got "
            f"micro={micro}, window={window}, copies={copies}, partial={partial}"
        )
    settle = Settle(max_error, patience, noise)
    n = times.shape[1]
    lists = Lists(micro, ((),) * n)
    if copies > 0:
        lists = lists_of(codes.spread(n, micro=micro, copies=copies))
    if max_error > 0.0 and partial:
        lists = replace(lists, streams=True)
    out = simulate(times, comm, lists, Helping(patience, window), settle)
    lost = np.asarray(settle.lost)
    return replace(
        out,
        lost=float(lost.mean()),
        notes={
            "mean_error": float(np.mean(settle.errors)),
            "settled_share": float((lost > 0.0).mean()),
        },
    )
