"""The predicted error of an estimate, which labels that come late keep honest.

The squared error e is guessed twice, and both guesses are relative to
u = rho W sqrt(M Q / m). Here Q is a shard's energy, m the number of shards of which
something is missing, W their share of the batch, and M the squared length of what is
remembered of them (mean_missing; Q / m where that is 0). One guess, l_left, is the log
error of the same coefficients on this step's left-out problems. The other, l_past, is
the true log error of recent steps. Then

    e = u exp(t l_left + (1 - t) l_past + s)
    predicted = kappa e / (|g^|^2 + e).

kappa, the sum of recent true errors over the sum of predicted ones, keeps the mean
right. The bound is q times the prediction, and q is moved so that 3 of 100 true errors
are above it, as in I. Gibbs, E. Candes, "Adaptive Conformal Inference Under
Distribution Shift", 2021.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.lab.decoders.gram import Label, Problem, squared_error

if TYPE_CHECKING:
    from codedgrad.lab.decoders.gram import Array

EXCEEDED = 0.03  # share of true errors that may be above the bound
_GAIN = 0.15  # by how much a label moves log q
_KEEP = 0.95  # what each label keeps of l_past's average
_REMEMBER = 0.95  # what each label keeps of kappa's sums
_PRIOR = 5.0  # kappa = 1 counts for so many labels
_FIRST_Q = 2.5
_FLOOR = 1e-12


class Predictor:
    """The error prediction of one decoder; every label teaches it once."""

    def __init__(self) -> None:
        """Begin with kappa = 1, since nothing is known."""
        self.past = 0.0
        self.weight = 0.0
        self.true = self.raw = _PRIOR
        self.q = _FIRST_Q

    @property
    def kappa(self) -> float:
        """Recent true errors over recent predicted ones, 0.1 to 10."""
        return min(10.0, max(0.1, self.true / self.raw))

    def raw_error(self, problem: Problem, c: Array, t: float, s: float) -> float:
        """Return e / (|g^|^2 + e), the prediction without kappa."""
        u = unit(problem)
        if u <= 0.0:  # there is nothing to measure by
            nothing = problem.rho < 1.0 and _estimate_norm(problem, c) == 0.0
            return 0.0 if nothing else 1.0
        left = self._left(problem, c)
        past = self.past / self.weight if self.weight else left
        if not problem.left_count:
            left = past
        e = u * math.exp(min(30.0, t * left + (1.0 - t) * past + s))
        whole = e + _estimate_norm(problem, c)
        return e / whole if whole > 0.0 else 0.0

    def predict(
        self, problem: Problem, c: Array, t: float = 0.5, s: float = 0.0
    ) -> tuple[float, float]:
        """Return (predicted, bound), both relative squared errors."""
        predicted = self.kappa * self.raw_error(problem, c, t, s)
        return predicted, predicted * self.q

    def learn(
        self, problem: Problem, c: Array, label: Label, t: float = 0.5, s: float = 0.0
    ) -> None:
        """Learn from the truth of a step in which these coefficients were chosen."""
        raw = self.raw_error(problem, c, t, s)
        error = true_error(problem, c, label)
        if raw > 0.0 and math.isfinite(error):
            above = error > self.kappa * raw * self.q
            self.q *= math.exp(_GAIN * (float(above) - EXCEEDED))
            self.q = min(30.0, max(1.0, self.q))
            if self.weight == 0.0:
                self.true *= raw
                self.raw *= raw
            self.true = _REMEMBER * self.true + error
            self.raw = _REMEMBER * self.raw + raw
        absolute = problem.rho**2 * float(
            squared_error(c, problem.gram, label.target, label.norm).sum()
        )
        u = unit(problem)
        if u > 0.0:
            ratio = math.log(absolute / u + _FLOOR)
            self.past = _KEEP * self.past + ratio
            self.weight = _KEEP * self.weight + 1.0

    @staticmethod
    def _left(problem: Problem, c: Array) -> float:
        """Return the log of the left-out problems' error over their energy."""
        if not problem.left_count:
            return 0.0
        error = squared_error(
            c, problem.left_gram, problem.left_target, problem.left_norm
        )
        energy = float(problem.left_norm.sum())
        return math.log(float(error.sum()) / energy + _FLOOR) if energy > 0.0 else 0.0


def unit(problem: Problem) -> float:
    """Return u, the size that errors are measured by."""
    energy = problem.left_norm if problem.left_count else problem.gram[:, 0, 0]
    share = problem.rho * problem.whole
    u = share * float(energy.sum()) / max(1, problem.count)
    known = share * float(problem.gram[:, 5, 5].sum())
    return math.sqrt(u) * math.sqrt(known) if known > 0.0 else u


def _estimate_norm(problem: Problem, c: Array) -> float:
    """Return |R + rho V c|^2."""
    rho = problem.rho
    cross = (c * problem.total[:, :-1]).sum(-1)
    square = (np.matmul(problem.gram, c[..., None])[..., 0] * c).sum(-1)
    norm = problem.total[:, -1] + 2.0 * rho * cross + rho**2 * square
    return max(0.0, float(norm.sum()))


def true_error(problem: Problem, c: Array, label: Label) -> float:
    """Return |g^ - g|^2 / |g|^2, now that the missing part is known.

    If g is 0 this is 0 for an estimate of 0 and inf for any other.
    """
    rho = problem.rho
    error = squared_error(c, problem.gram, label.target, label.norm)
    norm = problem.total[:, -1] + 2.0 * rho * label.cross + rho**2 * label.norm
    whole = float(norm.sum())
    wrong = rho**2 * float(error.sum())
    if wrong == 0.0:
        return 0.0
    return wrong / whole if whole > 0.0 else math.inf
