"""The engine's decoder (C++) against its reference in Python, over whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codedgrad.job import _engine
from codedgrad.lab.decoders import gram, network, replay
from codedgrad.lab.decoders.learned import Learned
from codedgrad.lab.decoders.noise import Noise

SHARDS, MICRO, STEPS = 6, 2, 60
MOST = -0.3  # excess noise from which an estimate leans on the average


def recording(seed: int, *, alike: bool = False) -> replay.Recording:
    """Return a run whose shards have a part of their own, a common one, and noise.

    With `alike` they differ by chance only, and the common part hardly moves.
    """
    random = np.random.default_rng(seed)
    sizes = np.array([300, 40, 400, 10])
    count = int(sizes.sum())
    own = random.standard_normal((SHARDS, 1, count))
    common = random.standard_normal((STEPS, 1, 1, count)).cumsum(axis=0)
    noise = random.standard_normal((STEPS, SHARDS, MICRO, count))
    if alike:
        return replay.Recording(0.01 * common + 0.5 * noise + 1.0, sizes)
    return replay.Recording(0.1 * common + own + 0.5 * noise, sizes)


def erasures(kind: str, seed: int) -> np.ndarray:
    if kind == "partial":
        random = np.random.default_rng(seed)
        arrived = random.random((STEPS, SHARDS, MICRO)) < 0.8
        arrived[:, 0] = True
        return arrived
    missing = {"one": 1, "alike": 2, "most": SHARDS - 1, "half": SHARDS // 2}[kind]
    return replay.erasures(STEPS, SHARDS, missing, "random", seed)


def random_network(seed: int) -> network.Network:
    random = np.random.default_rng(seed)
    shapes = network.SHAPES.items()
    return network.Network(**{n: 0.5 * random.standard_normal(s) for n, s in shapes})


class Twin:
    """The C++ decoder, which gets the same inner products."""

    def __init__(self, tiles: int, net: network.Network) -> None:
        arrays = (getattr(net, name) for name in network.SHAPES)
        self.core = _engine.LearnedDecoder(tiles, _engine.Network(*arrays))
        self.asked: dict[int, tuple[Any, Any]] = {}

    def choose(self, step: replay.Step, memory_age: np.ndarray, seen: Any) -> Any:
        base = gram.tiled(step.vectors, step.vectors, self.bounds)
        shards = _engine.DecoderShards(
            step.arrivals.fraction.tolist(),
            step.arrivals.weight.tolist(),
            seen.tolist(),
            memory_age.tolist(),
        )
        problem = _engine.DecoderProblem(base, shards)
        choice = self.core.choose(problem)
        # Sketches are scaled, each time otherwise.
        scale = 2.0 ** (step.number % 3)
        self.core.look(step.number, scale**2 * base, shards, scale)
        self.core.look(step.number, base, shards, 1.0)  # says nothing new of the step
        self.core.lean(problem, choice, MOST)
        self.asked[step.number] = (problem, choice)
        return choice

    bounds: np.ndarray


@pytest.mark.parametrize("kind", ["one", "alike", "half", "most", "partial"])
@pytest.mark.parametrize("delay", [1, 3])
def test_the_engine_chooses_as_the_reference(kind: str, delay: int) -> None:
    run = recording(3, alike=kind == "alike")
    net = random_network(4)
    tiles = len(run.bounds) - 1
    reference, twin = Learned(tiles, net), Twin(tiles, net)
    twin.bounds = run.bounds
    last = np.full(SHARDS, -1)
    chosen: dict[int, Any] = {}
    arrived = erasures(kind, 5)
    compared = leans = 0
    noise = Noise()
    for event, step in replay.play(run, arrived, delay):
        t = step.number
        if event == "late":
            inner, c, excess = chosen.pop(t)
            reference.learn(inner, c, step.label)
            noise.learn(excess, inner, c, step.label)
            problem, choice = twin.asked.pop(t)
            known = step.label
            twin.core.learn(problem, choice, known.target, known.norm, known.cross)
            there = arrived[t] if arrived.ndim == 3 else arrived[t][:, None]
            late = ~there.all(axis=1)
            last[late] = np.maximum(last[late], t)
            continue
        age = np.where(last >= 0, t - last, 0).astype(float)
        first = reference.coefficients(step.inner)
        choice = twin.choose(step, age, last >= 0)
        shards = (step.arrivals.fraction, step.arrivals.weight, last >= 0, age)
        base = gram.tiled(step.vectors, step.vectors, run.bounds)
        noise.look(t, base, shards, step.weights)
        c, excess = noise.lean(step.inner, first, MOST)
        leans += c is not first
        np.testing.assert_allclose(choice.noise, excess.share, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(choice.expected, excess.expected, rtol=1e-5)
        if step.inner.rho > 0.0:
            compared += 1
            np.testing.assert_allclose(choice.c, c, rtol=1e-5, atol=1e-7)
            predicted = reference.predictor.predict(step.inner, c, *reference.mixing())
            got = (choice.predicted, choice.bound)
            np.testing.assert_allclose(got, predicted, rtol=1e-5)
        chosen[t] = (step.inner, c, excess)
        reference.replay(step.inner)
        twin.core.replay(twin.asked[t][0])
        full = step.arrivals.fraction == 1.0
        last[full] = t
    assert compared >= STEPS - 5
    assert leans < compared
    assert leans > 0 or kind != "alike"


def test_what_was_learned_survives_saving() -> None:
    run, net = recording(1), random_network(2)
    tiles = len(run.bounds) - 1
    twin, other = Twin(tiles, net), Twin(1, net)
    twin.bounds = run.bounds
    for event, step in replay.play(run, erasures("half", 1)):
        if event == "late":
            problem, choice = twin.asked[step.number]
            known = step.label
            twin.core.learn(problem, choice, known.target, known.norm, known.cross)
        else:
            none = np.zeros(SHARDS)
            twin.choose(step, none, none > 0)
            twin.core.replay(twin.asked[step.number][0])
    state = twin.core.state()
    other.core.restore(state)
    np.testing.assert_allclose(other.core.state(), state, rtol=1e-12)
    for bad in ([], state[:-1], [float("nan"), *state[1:]]):
        with pytest.raises(ValueError, match="finite numbers"):
            other.core.restore(bad)


def test_a_network_of_another_shape_is_refused() -> None:
    net = random_network(0)
    arrays = [getattr(net, name) for name in network.SHAPES]
    arrays[0] = arrays[0][:-1]
    with pytest.raises(ValueError, match="w1 must be"):
        _engine.Network(*arrays)
