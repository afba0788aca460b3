"""How noisy an estimate is, in units of the batch's own sampling noise.

A batch is a sample. With m the gradient of all data, its gradient g has the noise
N = E|g - m|^2. An estimate g^ that settles a step early is worth as much as a batch
smaller by 1 / (1 + excess), where

    excess = E|g^ - m|^2 / N - 1.

All of it is told from one owner's slice, by the Gram matrix of the shards' rows. Of the
a complete shards j, with shares w_j of the batch, W together, and rows g_j of the mean
A, the owner knows

    now = sum_j w_j |g_j - A|^2 / (a - 1).

A shard's row has the noise N / w_j, so the mean of `now` is N, whatever w, if the
shards differ by chance only. Where they differ by what they hold, that is in `now`,
too; but it is no noise, since it does not average out. So the shards' last gradients
h_j, not older than three steps, are taken as well. With `now` of g and of h, and of the
changes g - h, in which what stays is gone,

    spread = mean of (now(g) + now(h)) / 2,    in_time = mean of now(g - h) / 2

over the last ten steps or so, bias = max(1, spread / in_time), and N = spread / bias.

The squared error of coefficients c has two parts. Let `current` be the weight that c
gives to this step's rows. By chance the missing share rho is off from its expectation
by N / rho, and the estimate of it by current^2 N / W. Anything else (what the shards
hold, memory that is old, a model that has moved) shows in the left-out shards of this
step, each of which is estimated from the others as if it were missing, where it is what
chance does not explain (u is a shard's mean share):

    offset = left error - now / bias (1 / u + current^2 / (W - u))
    expected = rho^2 (N / rho + current^2 N / W + offset).

That takes the missing for shards like the arrived ones. Rows that come late tell
whether they are: kappa is the mean of recent true errors over expected ones. Finally,
|g^ - m|^2 = |g^ - g|^2 + 2 <g^ - g, g - m> + |g - m|^2, and of the middle term the
sampling theory says -2 rho N (1 - current): who leans on memory has less of the noise
of this step. So

    excess = kappa expected / N - 2 rho (1 - current).

For the mean of the arrived shards (current = 1) of shuffled data it is rho / (1 - rho).
Sums over tiles are meant everywhere. An excess is infinite where there is nothing to
tell it from: fewer than two complete shards, fewer than two whose last gradient is
known, or shards which are all alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codedgrad.lab.decoders.candidates import FIXED
from codedgrad.lab.decoders.gram import Label, squared_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.decoders.gram import Array, Problem

_KEEP = 0.9  # what each step keeps of the spreads' sums
_FRESH = 3.0  # steps: memory that is older says nothing of noise
_PRIOR = 4.0  # labels that kappa = 1 counts for
_KEEP_LABEL = 0.9  # what each label keeps of kappa's sums
_WORST = 8.0  # the most that one label can say
_FLAT = 1e-4  # less spread than that is rounding
LEANS = (0.25, 0.5, 1.0)  # by how much an estimate leans on the running average at need


class Excess(NamedTuple):
    """What an estimate adds to the noise of a step, as a share of the batch's own.

    Attributes:
        share: the excess.
        expected: the squared error, before kappa.
        noise: N; infinite share where it is 0.
        credit: 2 rho (1 - current).
    """

    share: float = math.inf
    expected: float = 0.0
    noise: float = 0.0
    credit: float = 0.0


class Noise:
    """What one owner knows of the noise of its slice."""

    def __init__(self) -> None:
        """Begin without knowledge: nothing can be told from one step."""
        self._now: Array = np.zeros(0)
        self._here = self._each = 0.0
        self._current: Array = np.zeros(0)
        self._spread = self._in_time = self._steps = 0.0
        self._step = -1
        self._true = self._weight = _PRIOR

    @property
    def kappa(self) -> float:
        """Recent true errors over expected ones."""
        return self._true / self._weight

    @property
    def bias(self) -> float:
        """Spread between the shards over spread in time, at least 1."""
        known = self._in_time > 0.0
        return max(1.0, self._spread / self._in_time) if known else math.inf

    def look(
        self,
        step: int,
        base: Array,
        shards: tuple[Array, Array, NDArray[np.bool_], Array],
        weights: Array,
    ) -> None:
        """Take the inner products of a look at a step.

        Args:
            step: its number; of a step the first look alone counts for the bias.
            base: [T, 3 k + 2, 3 k + 2], of `gram.vectors`.
            shards: alpha, weight, seen and age, [k] each.
            weights: the span's, [3 k + 2, P].
        """
        alpha, weight, seen, age = shards
        k = len(alpha)
        complete = np.flatnonzero(alpha >= 1.0)
        fresh = np.flatnonzero((alpha >= 1.0) & seen & (age <= _FRESH))
        self._current = weights[:k].sum(axis=0)
        self._here = float(weight[complete].sum())
        self._now = np.zeros(0)
        if len(complete) < 2:
            return
        self._each = self._here / len(complete)
        rows = base[:, :k, :k]
        now = variance(_part(rows, complete), weight[complete])
        own = np.einsum("tjj,j->", _part(rows, complete), weight[complete])
        if now.sum() > _FLAT * own:
            self._now = now
        if len(fresh) < 2 or step == self._step:
            return
        last = slice(k, 2 * k)
        changes = rows - base[:, :k, last] - base[:, last, :k] + base[:, last, last]
        self._step = step
        share = weight[fresh]
        both = (_part(rows, fresh), _part(base[:, last, last], fresh))
        spread = 0.5 * float(sum(variance(part, share).sum() for part in both))
        in_time = 0.5 * float(variance(_part(changes, fresh), share).sum())
        self._spread = _KEEP * self._spread + spread
        self._in_time = _KEEP * self._in_time + in_time
        self._steps = _KEEP * self._steps + 1.0

    def excess(self, problem: Problem, c: Array) -> Excess:
        """Judge coefficients c [T, P] for the problem of the last look."""
        rho, now, spread = problem.rho, self._now, self._spread
        if not (len(now) and problem.left_count and rho > 0.0 and spread > 0.0):
            return Excess()
        bias = self.bias
        noise = spread / self._steps / bias * now / now.sum()
        current = c @ self._current
        left = squared_error(
            c, problem.left_gram, problem.left_target, problem.left_norm
        )
        others = self._here - self._each
        offset = left - now / bias * (1.0 / self._each + current**2 / others)
        chance = noise * (1.0 / rho + current**2 / self._here)
        expected = rho**2 * max(0.0, float((chance + offset).sum()))
        total = float(noise.sum())
        credit = 2.0 * rho * float((now * (1.0 - current)).sum() / now.sum())
        if total <= 0.0:
            return Excess(math.inf, expected, total, credit)
        return Excess(self.kappa * expected / total - credit, expected, total, credit)

    def lean(self, problem: Problem, c: Array, most: float) -> tuple[Array, Excess]:
        """Return c and its excess, or a c that leans on the running average.

        Where the excess is above `most`, a quarter of what is missing is taken from the
        running average, then half of it and then all, if that is less noisy.
        """
        chosen, best = c, self.excess(problem, c)
        for by in LEANS:
            if best.share <= most:
                break
            leaning = (1.0 - by) * c + by * FIXED["momentum"]
            other = self.excess(problem, leaning)
            if other.share < best.share:
                chosen, best = leaning, other
        return chosen, best

    def learn(self, excess: Excess, problem: Problem, c: Array, label: Label) -> None:
        """Learn the truth of an estimate with coefficients c and this excess."""
        error = squared_error(c, problem.gram, label.target, label.norm)
        wrong = problem.rho**2 * float(error.sum())
        if not excess.expected > 0.0 or not math.isfinite(wrong):
            return
        ratio = min(_WORST, wrong / excess.expected)
        self._true = _PRIOR + _KEEP_LABEL * (self._true - _PRIOR) + ratio
        self._weight = _PRIOR + _KEEP_LABEL * (self._weight - _PRIOR) + 1.0


def variance(gram: Array, weight: Array) -> Array:
    """Return the variance [T] of the batch's mean.

    Args:
        gram: [T, a, a], inner products of independent vectors of the same mean.
        weight: [a], their shares of the batch.
    """
    own = np.einsum("tjj,j->t", gram, weight)
    mean = np.einsum("i,tij,j->t", weight, gram, weight) / weight.sum()
    return np.asarray(np.maximum(own - mean, 0.0) / (len(weight) - 1))


def _part(gram: Array, rows: NDArray[np.int64]) -> Array:
    return gram[:, rows][:, :, rows]
