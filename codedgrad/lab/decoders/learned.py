"""The learned decoder: a small network chooses among fitted coefficients.

The network's weights are learned beforehand, on recorded gradients of other tasks
(benchmarks/fit_decoder.py). The normal equations, the candidates' recent errors and the
calibration are learned during the job, from late rows and left-out shards. A gate takes
the best single candidate where the mixture has been worse than it.
"""

from __future__ import annotations

import numpy as np

from codedgrad.lab.decoders.base import Decoder
from codedgrad.lab.decoders.candidates import FIXED, NAMES, energy
from codedgrad.lab.decoders.gram import Array, Label, P, Problem, squared_error
from codedgrad.lab.decoders.network import Network
from codedgrad.lab.decoders.statistics import Statistics

GATE_LABELS = 10  # the gate is open until so many labels have come
GATE_RATIO = 1.03  # so much worse than the best candidate the mixture may be
_KEEP = 0.97  # what each label keeps of the mixture's older errors
AGED = 3.0  # steps; older memory counts as old
RESCALE, SAGA = NAMES.index("rescale"), NAMES.index("saga")


def scarce(problem: Problem, labels: int) -> int | None:
    """Return the candidate to take while labels are rare and memory is old, or None.

    The rows of a worker that is always far behind come once in many steps. Coefficients
    that are fitted to a few of them shrink what is missing, step after step, and the
    model forgets what it does not see. Until there are twice as many labels as the
    memory is steps old, only rules without shrinkage are trusted: SAGA where memory of
    any kind is better than rescaling on this step's left-out shards, else rescaling.
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
    """Chooses c = sum_k w_k c_k, with the weights w of `network.Network`."""

    name = "learned"

    def __init__(self, tiles: int, network: Network | None = None) -> None:
        """Take the network; None is the pretrained one."""
        super().__init__(tiles)
        self.network = network if network is not None else Network.pretrained()
        self.statistics = Statistics(tiles)
        self._mixture = 0.0  # recent error of the mixture, as Statistics has others'
        self._mixing = (0.5, 0.0)
        self._asked: list[tuple[Problem, Array, Array, tuple[float, float]]] = []

    @property
    def chosen(self) -> str:
        """What the gate lets through: "mixture", or the name of a candidate."""
        k = self._gate()
        return "mixture" if k is None else NAMES[k]

    def mixing(self) -> tuple[float, float]:
        """Return (t, s) from the network."""
        return self._mixing

    def coefficients(self, problem: Problem) -> Array:
        """Return c [T, P]."""
        candidates = self.statistics.squares.candidates(problem)
        f, context = self.statistics.features(problem, candidates)
        w, t, s = self.network(f, context, self.statistics.labels)
        mixed = np.asarray((w[..., None] * candidates).sum(axis=1))
        self._mixing = float(t.mean()), float(s.mean())
        k = scarce(problem, self.statistics.labels)
        if k is None:
            k = self._gate()
        c = mixed if k is None else candidates[:, k]
        # A label may come many steps later, and must judge what is known now.
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
        """Learn one label: for the equations, the errors, the gate and calibration."""
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
        """Learn a step's left-out problems; called once a step, after its decoding."""
        self.statistics.squares.replay(problem)
