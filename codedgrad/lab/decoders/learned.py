"""The learned decoder: a small network chooses among fitted coefficients.

What is learned when: the network's weights beforehand, on recorded gradients of other
tasks (benchmarks/fit_decoder.py); the normal equations, the candidates' recent errors
and the calibration during the job, from late rows and left-out shards. A gate takes
the best single candidate where the mixture has been worse than it.
"""

from __future__ import annotations

import numpy as np

from codedgrad.lab.decoders.base import Decoder
from codedgrad.lab.decoders.candidates import FIXED, NAMES, energy
from codedgrad.lab.decoders.gram import Array, Label, P, Problem, squared_error
from codedgrad.lab.decoders.network import Network
from codedgrad.lab.decoders.statistics import Statistics

GATE_LABELS = 10
GATE_RATIO = 1.03
_KEEP = 0.97
AGED = 3.0  # steps: memory that is older is old
RESCALE, SAGA = NAMES.index("rescale"), NAMES.index("saga")


def scarce(problem: Problem, labels: int) -> int | None:
    """Which candidate to take while labels are rare and memory old; None: neither.

    Where a worker is always far behind, its rows come once in many steps: coefficients
    fitted to a few of them shrink what is missing, step after step, and what training
    does not see it forgets. Until there are twice as many labels as the memory is steps
    old, only rules without shrinkage are trusted: SAGA where memory of any kind is
    better than rescaling on this step's left-out shards, else rescaling.
    """
    fresh = problem.staleness <= AGED and problem.known > 0.5
    if fresh or labels >= max(P, 2.0 * problem.staleness):
        return None
    if not problem.left_count or problem.known <= 0.5:
        return RESCALE
    tables = problem.left_gram, problem.left_target, problem.left_norm
    rescale, saga, mean = (
        float(squared_error(FIXED[name], *tables).sum())
        for name in ("rescale", "saga", "saga_mean")
    )
    return SAGA if min(saga, mean) < rescale else RESCALE


class Learned(Decoder):
    """c = sum_k w_k c_k, with w from the network; see codedgrad.lab.decoders.network."""

    name = "learned"

    def __init__(self, tiles: int, network: Network | None = None) -> None:
        """`network`: the pretrained one if None."""
        super().__init__(tiles)
        self.network = network if network is not None else Network.pretrained()
        self.statistics = Statistics(tiles)
        self._mixture = 0.0  # its recent error, as the candidates' in Statistics
        self._mixing = (0.5, 0.0)
        self._asked: list[tuple[Problem, Array, Array, tuple[float, float]]] = []

    @property
    def chosen(self) -> str:
        """What the gate lets through: "mixture" or a candidate's name."""
        k = self._gate()
        return "mixture" if k is None else NAMES[k]

    def mixing(self) -> tuple[float, float]:
        """(t, s) from the network."""
        return self._mixing

    def coefficients(self, problem: Problem) -> Array:
        """C [T, P]."""
        candidates = self.statistics.squares.candidates(problem)
        f, context = self.statistics.features(problem, candidates)
        w, t, s = self.network(f, context, self.statistics.labels)
        mixed = np.asarray((w[..., None] * candidates).sum(axis=1))
        self._mixing = float(t.mean()), float(s.mean())
        k = scarce(problem, self.statistics.labels)
        if k is None:
            k = self._gate()
        c = mixed if k is None else candidates[:, k]
        # A label may come many steps later, and must judge what was known now.
        self._asked = [(problem, candidates, mixed, self._mixing), *self._asked[:63]]
        return c

    def _gate(self) -> int | None:
        stats = self.statistics
        if stats.labels < GATE_LABELS:
            return None
        pooled = stats.errors[0].sum(axis=0)
        k = int(pooled.argmin())
        return k if self._mixture > GATE_RATIO * pooled[k] else None

    def learn(self, problem: Problem, c: Array, label: Label) -> None:
        """One label: teaches the equations, the errors, the gate, the calibration."""
        known = next((a for a in self._asked if a[0] is problem), None)
        if known is None:  # the step is forgotten
            return
        _, candidates, mixed, mixing = known
        self.predictor.learn(problem, c, label, *mixing)
        s = energy(problem)
        if s > 0.0:
            error = squared_error(mixed, problem.gram, label.target, label.norm).sum()
            self._mixture = _KEEP * self._mixture + float(error) / s
        self.statistics.learn(problem, candidates, label)

    def replay(self, problem: Problem) -> None:
        """A step's left-out problems; once per step, after its decoding."""
        self.statistics.squares.replay(problem)
