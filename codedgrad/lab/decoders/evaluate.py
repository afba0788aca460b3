"""All decoders on a recording, online: each learns from the past of the run only."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders import gram
from codedgrad.lab.decoders.base import Decoder, FixedDecoder
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

    from codedgrad.lab.decoders.network import Network

# The decoders that learn nothing but their error; a new one is one name more.
SIMPLE: tuple[type[Decoder], ...] = (Zero, Rescale, Shrink, Momentum, Stale, Saga)
FIXED_NAMES = tuple(kind.name for kind in SIMPLE if issubclass(kind, FixedDecoder))
SKIPPED = 0.1  # this share of the steps, at the start, is left out of every figure
FIRST = 50  # the figures of a run's beginning are over so many steps


def decoders(tiles: int, network: Network | None = None) -> list[Decoder]:
    """Return a new decoder of each kind, without the oracle."""
    simple: list[Decoder] = [kind(tiles) for kind in SIMPLE]
    return [*simple, OnlineLeastSquares(tiles), Learned(tiles, network)]


def errors(
    recording: Recording,
    arrived: NDArray[np.bool_],
    delay: int = 1,
    network: Network | None = None,
) -> dict[str, dict[str, Array]]:
    """Play a recording, and return the relative squared errors of every decoder.

    Args:
        recording: gradients of a run.
        arrived: bool [steps, k] or [steps, k, m], what comes in time.
        delay: steps until late rows arrive.
        network: the learned decoder's network; None is the pretrained one.

    Returns:
        For each decoder "true", "predicted" and "bound" [steps] against the batch's
        gradient, and "population" [steps] if the recording has it. The oracle
        predicts nothing.
    """
    compared = decoders(len(recording.bounds) - 1, network)
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
        choices = chosen[t] = []
        population = _population(recording, step)
        for decoder in compared:
            c = decoder.coefficients(inner)
            predicted, bound = decoder.predictor.predict(inner, c, *decoder.mixing())
            choices.append((decoder, c, inner))
            row = out[decoder.name]
            row["true"][t] = true_error(inner, c, step.label)
            row["predicted"][t], row["bound"][t] = predicted, bound
            if population is not None:
                row["population"][t] = _distance(inner, c, *population)
            if isinstance(decoder, Learned):
                decoder.replay(inner)
        best = oracle(inner, step.label)
        out["oracle"]["true"][t] = true_error(inner, best, step.label)
        if population is not None:
            out["oracle"]["population"][t] = _distance(inner, best, *population)
    return {name: dict(rows) for name, rows in out.items()}


def _distance(inner: Problem, c: Array, label: Label, whole: float) -> float:
    """Return the squared error against `label`, relative to `whole`."""
    error = squared_error(c, inner.gram, label.target, label.norm)
    return float(error.sum()) / whole


def _population(recording: Recording, step: Step) -> tuple[Label, float] | None:
    """Return the label of (p - R) / rho as the missing mean, and |p|^2 / rho^2.

    Here p is the population's gradient.
    """
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
    """Return |g - p|^2 / |p|^2 [steps] of the batch's own gradient g.

    No decoder of the batch is asked to be closer to the population's gradient p.
    """
    out = np.zeros(len(recording.grads))
    if recording.population is None:
        return out
    for t, want in enumerate(recording.population.astype(np.float64)):
        got = recording.grads[t].astype(np.float64).mean(axis=(0, 1))
        out[t] = ((got - want) ** 2).sum() / max(float((want**2).sum()), 1e-300)
    return out


def summary(found: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """Return the figures of `codedgrad decoder eval` for each decoder.

    All but first_50 leave the first 10 % of the steps out.

    mean, median: of |g^ - g|^2 / |g|^2.
    geomean_ratio: geometric mean over the steps of the error over rescaling's.
    first_50: mean over the first 50 steps.
    calibration: mean predicted error over mean true error.
    exceeded: share of the steps whose error is above the bound.
    population: mean error against the population's gradient.

    Raises:
        ConfigError: every step's gradient is 0.
    """
    # Relative to a gradient of 0 an error is infinite, so such steps do not count.
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
