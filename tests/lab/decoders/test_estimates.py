"""Every decoder against the slow reference, and what must hold for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lab.decoders import reference
from lab.decoders.conftest import case

from codedgrad.lab.decoders import (
    Arrivals,
    Decoder,
    Learned,
    Memory,
    Momentum,
    Network,
    OnlineLeastSquares,
    Rescale,
    Saga,
    Shrink,
    Stale,
    Zero,
    evaluate,
    gram,
    predictor,
)
from codedgrad.lab.decoders.candidates import FIXED
from codedgrad.lab.decoders.oracle import oracle

SIMPLE = (Zero, Rescale, Shrink, Momentum, Stale, Saga)
CASES: list[dict[str, Any]] = [
    {},
    {"late": (0,), "k": 8},
    {"late": (), "partly": {2: 0.25, 4: 0.5}},
    {"late": (1,), "partly": {0: 0.75}},
    {"unseen": (1, 2)},
    {"unseen": (0, 1, 2, 3, 4)},
    {"k": 2, "late": (1,)},
    {"k": 4, "late": (0, 1, 2), "partly": {3: 0.5}},
]


def truth_of(arrivals: Arrivals, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch's gradient and the missing mean x; both fit partial rows too."""
    total = arrivals.total()
    missing = arrivals.weight * (1.0 - arrivals.fraction)
    return total + missing @ shards, missing @ shards / missing.sum()


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("kind", SIMPLE)
def test_simple_decoders_do_what_their_docstring_says(
    kind: type[Decoder], options: dict[str, Any]
) -> None:
    arrivals, memory, _ = case(**options)
    if kind is Shrink and len(reference.left_out(arrivals, memory)) < 2:
        want = reference.estimate("rescale", arrivals, memory)
    else:
        want = reference.estimate(kind.name, arrivals, memory)
    got = kind(3).estimate(arrivals, memory)
    np.testing.assert_allclose(got.gradient, want, rtol=1e-9, atol=1e-12)
    assert 0.0 <= got.predicted <= got.bound


@pytest.mark.parametrize("options", CASES, ids=str)
def test_span_and_left_out_problems(options: dict[str, Any]) -> None:
    arrivals, memory, _ = case(**options)
    inner, weights = gram.problem(arrivals, memory)
    v = (gram.vectors(arrivals, memory).T @ weights).T
    slow = reference.span(arrivals, memory, arrivals.fraction, 1.0 - arrivals.fraction)
    for i, name in enumerate(gram.SPAN):
        np.testing.assert_allclose(v[i], slow[name], atol=1e-12, err_msg=name)
    cases = reference.left_out(arrivals, memory)
    assert inner.left_count == len(cases)
    for t, (a, b) in enumerate(memory.tiles()):
        np.testing.assert_allclose(inner.gram[t], v[:, a:b] @ v[:, a:b].T, atol=1e-9)
        if not cases:
            continue
        grams, targets, norms = [], [], []
        for vectors, j in cases:
            s = np.array([vectors[name][a:b] for name in gram.SPAN])
            x = arrivals.rows[j][a:b]
            grams.append(s @ s.T)
            targets.append(s @ x)
            norms.append(x @ x)
        np.testing.assert_allclose(inner.left_gram[t], np.mean(grams, 0), atol=1e-9)
        np.testing.assert_allclose(inner.left_target[t], np.mean(targets, 0), atol=1e-9)
        np.testing.assert_allclose(inner.left_norm[t], np.mean(norms), atol=1e-9)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_error_in_gram_space_is_that_of_the_gradient(
    network: Network, options: dict[str, Any]
) -> None:
    arrivals, memory, shards = case(**options)
    truth, x = truth_of(arrivals, shards)
    inner, weights = gram.problem(arrivals, memory)
    known = gram.label(
        gram.vectors(arrivals, memory), weights, x, arrivals.total(), memory.bounds
    )
    for decoder in evaluate.decoders(3, network):
        c = decoder.coefficients(inner)
        got = decoder.estimate(arrivals, memory).gradient
        want = ((got - truth) ** 2).sum() / (truth**2).sum()
        assert predictor.true_error(inner, c, known) == pytest.approx(want, rel=1e-9)


def test_oracle_is_never_beaten(network: Network) -> None:
    for seed in range(20):
        arrivals, memory, shards = case(seed, partly={4: 0.5})
        _, x = truth_of(arrivals, shards)
        inner, weights = gram.problem(arrivals, memory)
        u = gram.vectors(arrivals, memory)
        known = gram.label(u, weights, x, arrivals.total(), memory.bounds)
        best = predictor.true_error(inner, oracle(inner, known), known)
        v = (u.T @ weights).T
        error = 0.0
        for a, b in memory.tiles():
            c = np.linalg.lstsq(v[:, a:b].T, x[a:b], rcond=None)[0]
            error += ((c @ v[:, a:b] - x[a:b]) ** 2).sum()
        norm = ((arrivals.total() + inner.rho * x) ** 2).sum()
        assert best == pytest.approx(inner.rho**2 * error / norm, rel=1e-6, abs=1e-9)
        choices = [d.coefficients(inner) for d in evaluate.decoders(3, network)]
        for c in [*choices, *(np.tile(f, (3, 1)) for f in FIXED.values())]:
            assert best <= predictor.true_error(inner, c, known) * (1 + 1e-6) + 1e-9


def test_cover_is_exact_and_no_decoder_is_asked(network: Network) -> None:
    random = np.random.default_rng(0)
    rows = random.integers(-8, 9, (4, 30)).astype(float)  # sums are exact
    arrivals = Arrivals.of(rows, np.ones(4))
    memory = case(k=4)[1]
    for decoder in evaluate.decoders(3, network):
        got = decoder.estimate(arrivals, memory)
        np.testing.assert_array_equal(got.gradient, rows.sum(axis=0) / 4)
        assert (got.predicted, got.bound) == (0.0, 0.0)


def moved(arrivals: Arrivals, memory: Memory, change: Any) -> tuple[Arrivals, Memory]:
    """Return the same job with its gradients changed by `change`."""
    other = Memory(len(memory.seen), memory.bounds)
    for name in ("last", "mean", "previous", "average"):
        getattr(other, name)[:] = change(getattr(memory, name))
    other.seen[:], other.step[:] = memory.seen, memory.step
    other.decoded = memory.decoded
    return Arrivals.of(change(arrivals.rows), arrivals.fraction), other


def rotation(bounds: Any) -> Any:
    """Return a map that is orthogonal within each tile."""
    random = np.random.default_rng(1)
    blocks = []
    for i in range(len(bounds) - 1):
        n = bounds[i + 1] - bounds[i]
        blocks.append(np.linalg.qr(random.normal(size=(n, n)))[0])

    def turn(x: np.ndarray) -> np.ndarray:
        parts = np.split(x, bounds[1:-1], axis=-1)
        return np.concatenate(
            [p @ q for p, q in zip(parts, blocks, strict=True)], axis=-1
        )

    return turn


@pytest.mark.parametrize("change_name", ["scale up", "scale down", "rotate", "permute"])
def test_equivariant(network: Network, change_name: str) -> None:
    seen = [case(s, partly={4: 0.5}) for s in range(12)]
    bounds = seen[0][1].bounds
    order = np.concatenate(
        [np.random.default_rng(2).permutation(np.arange(a, b))
         for a, b in seen[0][1].tiles()]
    )  # fmt: skip
    change = {
        "scale up": lambda x: x * 2.0**40,
        "scale down": lambda x: x * 2.0**-60,
        "rotate": rotation(bounds),
        "permute": lambda x: x[..., order],
    }[change_name]
    pairs = zip(
        evaluate.decoders(3, network), evaluate.decoders(3, network), strict=True
    )
    for one, two in pairs:
        for arrivals, memory, shards in seen:
            a, m = moved(arrivals, memory, change)
            want, got = one.estimate(arrivals, memory), two.estimate(a, m)
            scale = np.abs(change(want.gradient)).max()
            np.testing.assert_allclose(
                got.gradient, change(want.gradient), atol=1e-6 * scale
            )
            assert got.predicted == pytest.approx(want.predicted, rel=1e-5)
            assert got.bound == pytest.approx(want.bound, rel=1e-5)
            for d, (r, n, truth) in (
                (one, (arrivals, memory, shards)),
                (two, (a, m, change(shards))),
            ):
                inner, weights = gram.problem(r, n)
                x = truth_of(r, truth)[1]
                known = gram.label(gram.vectors(r, n), weights, x, r.total(), bounds)
                d.learn(inner, d.coefficients(inner), known)


def test_learned_and_least_squares_start_sensibly(network: Network) -> None:
    """Without any label least squares rescales, and the learned one stays finite."""
    arrivals, memory, _ = case()
    got = OnlineLeastSquares(3).estimate(arrivals, memory)
    want = Rescale(3).estimate(arrivals, memory)
    np.testing.assert_allclose(got.gradient, want.gradient)
    assert np.isfinite(Learned(3, network).estimate(arrivals, memory).gradient).all()
