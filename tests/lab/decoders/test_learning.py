"""What decoders learn during a job: coefficients, the gate's choice, the error."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from lab.decoders import reference
from lab.decoders.conftest import case, drifting

from codedgrad.lab.decoders import (
    Learned,
    Network,
    OnlineLeastSquares,
    Recording,
    erasures,
    evaluate,
    gram,
    replay,
)
from codedgrad.lab.decoders.candidates import FIXED, NAMES, coefficients
from codedgrad.lab.decoders.network import SHAPES
from codedgrad.lab.decoders.predictor import true_error


def test_online_least_squares_is_least_squares() -> None:
    """It agrees with stacked least squares in which older labels weigh less."""
    decoder = OnlineLeastSquares(1)
    spans, truths = [], []
    for seed in range(30):
        arrivals, memory, shards = case(
            seed, k=6, bounds=(0, 60), late=(seed % 6, (seed + 2) % 6),
            partly={(seed + 1) % 6: 0.5},
        )  # fmt: skip
        inner, weights = gram.problem(arrivals, memory)
        u = gram.vectors(arrivals, memory)
        missing = 1.0 - arrivals.fraction
        x = missing @ shards / missing.sum()
        c = decoder.coefficients(inner)
        decoder.learn(
            inner, c, gram.label(u, weights, x, arrivals.total(), memory.bounds)
        )
        spans.append((u.T @ weights).T)
        truths.append(x)
    # The reference has the same energy: the arrived and the running average.
    want = reference.weighted_least_squares(spans, truths, keep=0.98)
    np.testing.assert_allclose(decoder.coefficients(inner)[0], want, atol=2e-3)


def test_online_least_squares_finds_the_true_coefficients() -> None:
    true = coefficients(arrived=0.3, average=0.5, last_missing=0.4, mean_arrived=-0.2)
    decoder = OnlineLeastSquares(2)
    for seed in range(60):
        arrivals, memory, _ = case(seed, k=6, bounds=(0, 40, 90), late=(seed % 6,))
        # If this were a combination of the shards' memory, c would not be unique.
        memory.previous[:] = np.random.default_rng(seed).normal(size=90)
        inner, weights = gram.problem(arrivals, memory)
        u = gram.vectors(arrivals, memory)
        x = u.T @ weights @ true
        c = decoder.coefficients(inner)
        decoder.learn(
            inner, c, gram.label(u, weights, x, arrivals.total(), memory.bounds)
        )
    np.testing.assert_allclose(
        decoder.coefficients(inner), np.tile(true, (2, 1)), atol=1e-3
    )


def stubborn(name: str) -> Network:
    """Return a network that always chooses one candidate, whatever it has seen."""
    arrays = {n: np.zeros(s) for n, s in SHAPES.items()}
    arrays["b2"][:6] = -50.0  # known errors have no weight
    first = 6
    arrays["b2"][first:-2] = -50.0
    arrays["b2"][first + NAMES.index(name)] = 50.0
    return Network(**arrays)


def run(decoder: Learned, recording: Recording, arrived: Any) -> Any:
    """Return (true, predicted, bound) of every step."""
    rows, asked = [], {}
    for kind, step in replay.play(recording, arrived):
        if kind == "late":
            decoder.learn(step.inner, asked.pop(step.number), step.label)
            continue
        c = asked[step.number] = decoder.coefficients(step.inner)
        predicted = decoder.predictor.predict(step.inner, c, *decoder.mixing())
        rows.append((true_error(step.inner, c, step.label), *predicted))
        decoder.replay(step.inner)
    return np.array(rows).T


def test_the_gate_overrules_a_network_that_is_wrong() -> None:
    """Momentum is wrong: missing shards are like the arrived, which change sign."""
    recording = drifting(noise=0.02)
    recording.grads[1::2] *= -1.0
    arrived = erasures(len(recording.grads), 6, 2, "random")
    decoder = Learned(2, stubborn("momentum"))
    errors = run(decoder, recording, arrived)[0]
    others = evaluate.errors(recording, arrived, network=stubborn("momentum"))
    best = min(
        others[name]["true"][40:].mean()
        for name in (*evaluate.FIXED_NAMES, "online_ls")
    )
    assert decoder.chosen in NAMES
    assert np.mean(errors[40:]) <= 1.03 * best
    assert np.mean(errors[:15]) > 2.0 * np.mean(errors[40:])


def test_a_good_mixture_is_let_through(network: Network) -> None:
    recording = drifting()
    arrived = erasures(len(recording.grads), 6, 2, "random")
    found = evaluate.summary(evaluate.errors(recording, arrived, network=network))
    best = min(found[n]["mean"] for n in (*evaluate.FIXED_NAMES, "online_ls"))
    assert found["learned"]["mean"] <= 1.1 * best
    assert found["oracle"]["mean"] <= found["learned"]["mean"]


def test_predictions_are_calibrated(network: Network) -> None:
    """This judges 1,000 estimates of 4 jobs, each before its own label is learned."""
    rows = []
    cases = ((1, 0.1), (3, 1.0), (2, 0.3), (4, 0.1))
    for seed, (missing, noise) in enumerate(cases):
        recording = drifting(steps=260, noise=noise, sizes=(256,))
        arrived = erasures(260, 6, missing, "random", seed)
        rows.append(run(Learned(1, network), recording, arrived)[:, 10:])
    true, predicted, bound = np.concatenate(rows, axis=1)
    assert len(true) == 1000
    assert 0.8 <= np.mean(predicted) / np.mean(true) <= 1.25
    assert np.mean(true > bound) <= 0.05


def test_a_label_that_comes_late_judges_what_was_known_then(network: Network) -> None:
    """Two decoders learn the same label, one of them after it has seen another step."""
    (a, m, s), (a2, m2, _) = case(1), case(2)
    early, late = Learned(3, network), Learned(3, network)
    inner, weights = gram.problem(a, m)
    x = (1.0 - a.fraction) @ s / (1.0 - a.fraction).sum()
    known = gram.label(gram.vectors(a, m), weights, x, a.total(), m.bounds)
    second = gram.problem(a2, m2)[0]
    c = early.coefficients(inner)
    early.learn(inner, c, known)
    c = late.coefficients(inner)
    late.coefficients(second)
    late.learn(inner, c, known)
    np.testing.assert_array_equal(early.coefficients(second), late.coefficients(second))
    assert early.predictor.kappa == late.predictor.kappa
    # A problem that the decoder has not seen teaches nothing.
    late.learn(dataclasses.replace(inner), c, known)
    assert late.statistics.labels == 1


def test_the_shipped_network_is_no_worse_than_simple_decoders() -> None:
    recording = drifting()
    arrived = erasures(len(recording.grads), 6, 1, "fixed")
    found = evaluate.summary(evaluate.errors(recording, arrived))
    best = min(found[n]["mean"] for n in (*evaluate.FIXED_NAMES, "online_ls"))
    assert found["learned"]["mean"] <= 1.05 * best


def test_fixed_decoders_are_the_candidates_of_the_same_name() -> None:
    for kind in evaluate.SIMPLE:
        if kind.name in FIXED:
            np.testing.assert_array_equal(kind.choice, FIXED[kind.name])
