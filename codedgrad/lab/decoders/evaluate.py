"""Every decoder on a recording: online, trained on the past of the run only."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders import gram
from codedgrad.lab.decoders.gram import Array, Label, Problem, squared_error
from codedgrad.lab.decoders.learned import Learned
from codedgrad.lab.decoders.least_squares import OnlineLeastSquares
from codedgrad.lab.decoders.momentum import Momentum
from codedgrad.lab.decoders.oracle import oracle
from codedgrad.lab.decoders.predictor import true_error
from codedgrad.lab.decoders.replay import Recording, Step, play
from codedgrad.lab.decoders.rescale import Rescale
from codedgrad.lab.decoders.saga import Saga
from codedgrad.lab.decoders.shrink import Shrink
from codedgrad.lab.decoders.stale import Stale
from codedgrad.lab.decoders.zero import Zero

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.decoders.base import Decoder
    from codedgrad.lab.decoders.network import Network

SIMPLE = (Zero, Rescale, Shrink, Momentum, Stale, Saga)
FIXED_NAMES = ("zero", "rescale", "momentum", "stale", "saga")
SKIPPED = 0.1  # of the steps, at the start, left out of every figure
FIRST = 50  # steps of the figures of a run's beginning


def decoders(tiles: int, network: Network | None = None) -> list[Decoder]:
    """A fresh one of each, the oracle aside."""
    simple: list[Decoder] = [kind(tiles) for kind in SIMPLE]
    return [*simple, OnlineLeastSquares(tiles), Learned(tiles, network)]


def errors(
    recording: Recording,
    arrived: NDArray[np.bool_],
    delay: int = 1,
    network: Network | None = None,
) -> dict[str, dict[str, Array]]:
    """By decoder: relative squared errors of every step.

    Returns:
        "true" and "predicted", "bound" [steps] against the batch's gradient, and
        "population" [steps] where the recording has it; no prediction for the oracle.
    """
    made = decoders(len(recording.bounds) - 1, network)
    steps = len(recording.grads)
    out: dict[str, dict[str, Array]] = defaultdict(
        lambda: defaultdict(lambda: np.zeros(steps))
    )
    chosen: dict[int, list[tuple[Decoder, Array, Problem]]] = {}
    for kind, step in play(recording, arrived, delay):
        if kind == "late":
            for decoder, c, inner in chosen.pop(step.number):
                decoder.learn(inner, c, step.label)
            continue
        t, inner = step.number, step.inner
        mine = chosen[t] = []
        population = _population(recording, step)
        for decoder in made:
            c = decoder.coefficients(inner)
            predicted, bound = decoder.predictor.predict(inner, c, *decoder.mixing())
            mine.append((decoder, c, inner))
            row = out[decoder.name]
            row["true"][t] = true_error(inner, c, step.label)
            row["predicted"][t], row["bound"][t] = predicted, bound
            _judge(inner, c, population, row, t)
            if isinstance(decoder, Learned):
                decoder.replay(inner)
        best = oracle(inner, step.label)
        out["oracle"]["true"][t] = true_error(inner, best, step.label)
        _judge(inner, best, population, out["oracle"], t)
    return {name: dict(rows) for name, rows in out.items()}


def _judge(
    inner: Problem,
    c: Array,
    population: tuple[Label, float] | None,
    row: dict[str, Array],
    t: int,
) -> None:
    if population is not None:
        known, whole = population
        error = squared_error(c, inner.gram, known.target, known.norm)
        row["population"][t] = float(error.sum()) / whole


def _population(recording: Recording, step: Step) -> tuple[Label, float] | None:
    """(p - R) / rho as if it were the missing mean, and |p|^2 / rho^2."""
    if recording.population is None:
        return None
    want = recording.population[step.number].astype(np.float64)
    rho = step.inner.rho
    x = (want - step.arrivals.total()) / rho
    known = gram.label(
        step.vectors,
        step.weights,
        x,
        np.asarray(step.arrivals.total()),
        recording.bounds,
    )
    return known, max(float((want**2).sum()), 1e-300) / rho**2


def population_of_batch(recording: Recording) -> Array:
    """The batch's own gradient [steps], judged as an estimate of the population's.

    |g - p|^2 / |p|^2: what no decoder of the batch is asked to beat.
    """
    out = np.zeros(len(recording.grads))
    if recording.population is None:
        return out
    for t, want in enumerate(recording.population.astype(np.float64)):
        got = recording.grads[t].astype(np.float64).mean(axis=(0, 1))
        out[t] = ((got - want) ** 2).sum() / max(float((want**2).sum()), 1e-300)
    return out


def summary(found: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """By decoder the figures of `codedgrad decoder eval`, first 10 % left out.

    mean, median: of |g^ - g|^2 / |g|^2. geomean_ratio: geometric mean over the steps
    of its error over rescaling's. first_50: mean over the first 50 steps.
    calibration: mean predicted over mean true error. exceeded: share of the steps whose
    error is above the bound. population: the mean against the population's gradient.

    Raises:
        ConfigError: every step's gradient is 0.
    """
    # Relative to a gradient of 0 an error is infinite: such steps count for nobody.
    there = np.all([np.isfinite(rows["true"]) for rows in found.values()], axis=0)
    if not there.any():
        raise ConfigError("the recording has no step with a gradient")
    found = {
        name: {key: row[there] for key, row in rows.items()}
        for name, rows in found.items()
    }
    rescale = found["rescale"]["true"]
    skip = int(SKIPPED * len(rescale))
    floor = 1e-30
    out: dict[str, dict[str, Any]] = {}
    for name, rows in found.items():
        true = rows["true"][skip:]
        ratio = np.log((true + floor) / (rescale[skip:] + floor))
        figures: dict[str, Any] = {
            "mean": float(true.mean()),
            "median": float(np.median(true)),
            "geomean_ratio": float(np.exp(ratio.mean())),
            "first_50": float(rows["true"][:FIRST].mean()),
        }
        if "predicted" in rows:
            predicted = rows["predicted"][skip:]
            figures["calibration"] = float(predicted.mean() / max(true.mean(), floor))
            figures["exceeded"] = float((true > rows["bound"][skip:]).mean())
        if "population" in rows:
            figures["population"] = float(rows["population"][skip:].mean())
        out[name] = figures
    return out
