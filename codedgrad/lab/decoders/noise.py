"""How noisy an estimate is, in units of the batch's own sampling noise.

A batch is a sample. With m the gradient of all data, its gradient g has the noise
N = E|g - m|^2. An estimate g^ that settles a step early is worth as much as a batch
smaller by 1 / (1 + excess), where

    excess = E|g^ - m|^2 / N - 1.

All of it is told from one owner's slice, by the Gram matrix of the shards' rows. Of the
a complete shards j, with shares w_j of the batch, W together, and rows g_j, the owner
knows the mean A, and

    spread = sum_j w_j |g_j - A|^2 / (a - 1),

which is N without bias if the shards differ by chance only: a shard's row has the noise
N / w_j. Where they differ by what they hold, spread has that, too, which is no noise and
does not average out. So it is taken of the changes d_j = g_j - h_j since each shard's
last gradient as well, in which what stays is gone,

    in_time = sum_j w_j |d_j - D|^2 / (2 (a - 1)),    D = sum_j w_j d_j / W,

and bias = max(1, spread / in_time), over sums of the last ten steps or so; then
N = spread / bias. Memory that is older than three steps does not count.

The squared error of coefficients c is what they would have had on this step's left-out
shards, with the share rho missing in place of one shard (of the mean share u), and a
shards to estimate from in place of a - 1. With current the weight that c gives to this
step's rows,

    expected = rho^2 (left error + spread (1/rho - 1/u - current^2 (1/(W-u) - 1/W))).

That takes the missing for shards like the arrived ones. Rows that come late tell
whether they are: kappa is the mean of recent true errors over expected ones. Finally,
|g^ - m|^2 = |g^ - g|^2 + 2 <g^ - g, g - m> + |g - m|^2, and of the middle term the
sampling theory says -2 rho N (1 - current): who leans on memory has less of the noise of
this step. So

    excess = kappa expected / N - 2 rho (1 - current).

For the mean of the arrived (current = 1) of shuffled shards that is rho / (1 - rho). The
last three symbols are taken tile by tile and summed. An excess is infinite where there
is nothing to tell it from: fewer than two complete shards, none whose last gradient is
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
_PRIOR = 2.0  # labels that kappa = 1 counts for
_KEEP_LABEL = 0.8  # what each label keeps of kappa's sums
_WORST = 20.0  # the most that one label can say
_FLAT = 1e-4  # less spread than that is rounding
LEANS = (0.5, 1.0)  # by how much an estimate leans on the running average at need


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
        self._spread = self._in_time = 0.0
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
        spread = float(variance(_part(rows, fresh), share).sum())
        in_time = 0.5 * float(variance(_part(changes, fresh), share).sum())
        self._spread = _KEEP * self._spread + spread
        self._in_time = _KEEP * self._in_time + in_time

    def excess(self, problem: Problem, c: Array) -> Excess:
        """Judge coefficients c [T, P] for the problem of the last look."""
        rho, now = problem.rho, self._now
        if not len(now) or not problem.left_count or not rho > 0.0:
            return Excess()
        current = c @ self._current
        left = squared_error(
            c, problem.left_gram, problem.left_target, problem.left_norm
        )
        fewer = 1.0 / (self._here - self._each) - 1.0 / self._here
        own = 1.0 / rho - 1.0 / self._each - current**2 * fewer
        expected = rho**2 * max(0.0, float((left + now * own).sum()))
        noise = float(now.sum()) / self.bias
        credit = 2.0 * rho * float((now * (1.0 - current)).sum() / now.sum())
        if noise <= 0.0:
            return Excess(math.inf, expected, noise, credit)
        return Excess(self.kappa * expected / noise - credit, expected, noise, credit)

    def lean(self, problem: Problem, c: Array, most: float) -> tuple[Array, Excess]:
        """Return c and its excess, or a c that leans on the running average.

        Where the excess is above `most`, half of what is missing is taken from the
        running average, and then all of it, if that is less noisy.
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
