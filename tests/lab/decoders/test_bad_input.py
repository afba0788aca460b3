"""Bad input causes no crash and no silent wrong answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab.decoders.conftest import case, drifting

from codedgrad import ConfigError
from codedgrad.lab.decoders import (
    Arrivals,
    Memory,
    Network,
    Recording,
    Rescale,
    erasures,
    evaluate,
)
from codedgrad.lab.decoders.network import SHAPES


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused(network: Network, bad: float) -> None:
    arrivals, memory, _ = case()
    rows = arrivals.rows.copy()
    rows[2, 17] = bad
    got = Arrivals.of(rows, arrivals.fraction)
    assert got.fraction.tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    without = arrivals.fraction.copy()
    without[2] = 0.0
    same = Arrivals.of(arrivals.rows, without)
    for one, two in zip(
        evaluate.decoders(3, network), evaluate.decoders(3, network), strict=True
    ):
        np.testing.assert_array_equal(
            one.estimate(got, memory).gradient, two.estimate(same, memory).gradient
        )


def test_a_late_row_that_is_not_finite_is_not_remembered() -> None:
    memory = Memory(2, np.array([0, 4]))
    memory.shard(0, 0, np.ones(4))
    memory.shard(0, 1, np.array([1.0, np.nan, 1.0, 1.0]))
    np.testing.assert_array_equal(memory.last[0], 1.0)
    memory.shard(0, -1, np.zeros(4))  # this gradient is older
    np.testing.assert_array_equal(memory.last[0], 1.0)
    assert memory.seen.tolist() == [1, 0]


def test_arrivals_must_fit() -> None:
    for rows, fraction in (
        (np.ones((2, 3)), [1.0]),
        (np.ones(3), [1.0]),
        (np.ones((2, 3)), [1.0, 1.5]),
        (np.ones((2, 3)), [1.0, -0.1]),
        (np.ones((2, 3)), [1.0, np.nan]),
    ):
        with pytest.raises(ConfigError):
            Arrivals.of(rows, fraction)
    with pytest.raises(ConfigError, match="weight"):
        Arrivals.of(np.ones((2, 3)), [1.0, 1.0], np.array([1.0, 1.0]))


def test_another_model_than_the_memory_s() -> None:
    arrivals, _, _ = case()
    for memory in (case(bounds=(0, 7, 12, 31))[1], case(k=6)[1]):
        with pytest.raises(ConfigError, match="memory"):
            Rescale(3).estimate(arrivals, memory)
    with pytest.raises(ConfigError, match="tiles"):
        Rescale(2).estimate(arrivals, case()[1])


def check(recording: Recording, arrived: Any, network: Network, limit: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = evaluate.summary(evaluate.errors(recording, arrived, network=network))
    for figures in found.values():
        assert all(np.isfinite(v) for v in figures.values())
    assert found["learned"]["mean"] <= limit


def test_gradients_of_zero(network: Network) -> None:
    recording = Recording(np.zeros((30, 4, 1, 600), np.float32), np.array([300, 300]))
    check(recording, erasures(30, 4, 1, "random"), network, 0.0)
    # All gradients are zero from some step on, or before it.
    for part in (slice(15, None), slice(0, 15)):
        recording = drifting(steps=30)
        recording.grads[part] = 0.0
        check(recording, erasures(30, 6, 1, "random"), network, 10.0)


def test_a_tensor_without_a_gradient(network: Network) -> None:
    recording = drifting(steps=40)
    recording.grads[..., :300] = 0.0
    check(recording, erasures(40, 6, 1, "random"), network, 1.0)


def test_tiny_and_huge_gradients(network: Network) -> None:
    for scale in (1e-30, 1e30):
        recording = drifting(steps=40)
        grads = recording.grads.astype(np.float64) * scale
        recording = Recording(grads, recording.sizes)
        check(recording, erasures(40, 6, 1, "random"), network, 1.0)


def test_a_shard_that_is_never_there(network: Network) -> None:
    """Its rows come a whole run late, so that nothing is ever known of it."""
    recording, arrived = drifting(steps=40), np.ones((40, 6), bool)
    arrived[:, 2] = False
    rows = evaluate.errors(recording, arrived, delay=100, network=network)
    for name, row in rows.items():
        assert np.isfinite(row["true"]).all(), name
    np.testing.assert_allclose(
        rows["stale"]["true"], rows["rescale"]["true"], rtol=1e-6
    )


@pytest.mark.parametrize("k", [2, 4])
def test_one_shard_has_arrived(network: Network, k: int) -> None:
    recording = drifting(steps=40, k=k)
    check(recording, erasures(40, k, k - 1, "random"), network, 3.0)


def test_nothing_has_arrived(network: Network) -> None:
    """With memory alone nothing crashes, and the estimate says it may be wrong."""
    arrivals, memory, _ = case(late=(0, 1, 2, 3, 4))
    for decoder in evaluate.decoders(3, network):
        got = decoder.estimate(arrivals, memory)
        assert np.isfinite(got.gradient).all()
        assert got.predicted > 0.0, decoder.name


def test_one_worker(network: Network) -> None:
    memory = Memory(1, np.array([0, 5]))
    rows = np.arange(5.0)[None]
    for decoder in evaluate.decoders(1, network):
        got = decoder.estimate(Arrivals.of(rows, [1.0]), memory)
        np.testing.assert_array_equal(got.gradient, rows[0])
        nothing = decoder.estimate(Arrivals.of(rows, [0.0]), memory)
        assert not nothing.gradient.any()
        assert nothing.predicted > 0.0


def test_network_files(tmp_path: Path, network: Network) -> None:
    arrays = {n: getattr(network, n) for n in SHAPES}
    np.savez(tmp_path / "good.npz", **arrays)
    got = Network.load(tmp_path / "good.npz")
    np.testing.assert_array_equal(got.w1, network.w1)
    raw = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[:200])
    np.savez(tmp_path / "other.npz", **{**arrays, "w1": np.ones((3, 3))})
    np.savez(tmp_path / "nan.npz", **{**arrays, "b1": np.full(16, np.nan)})
    del arrays["b2"]
    np.savez(tmp_path / "less.npz", **arrays)
    for name in ("cut", "other", "nan", "less", "absent"):
        with pytest.raises(ConfigError, match="network"):
            Network.load(tmp_path / f"{name}.npz")
    shipped = Network.pretrained()
    assert all(getattr(shipped, n).shape == s for n, s in SHAPES.items())
