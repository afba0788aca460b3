"""Recordings, and when their gradients become known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab.decoders.conftest import drifting

from codedgrad import ConfigError
from codedgrad.lab.decoders import Recording, erasures, load, replay, tiles_of


def test_patterns() -> None:
    for pattern in replay.PATTERNS:
        arrived = erasures(200, 8, 3, pattern, seed=1)
        assert arrived.shape == (200, 8)
        assert ((~arrived).sum(axis=1) == 3).all()
    fixed = erasures(200, 8, 3, "fixed")
    assert (fixed == fixed[0]).all()
    changes = erasures(500, 8, 2, "bursty")[1:] != erasures(500, 8, 2, "bursty")[:-1]
    assert 0.1 < changes.any(axis=1).mean() < 0.3  # 1 - 0.9^2 = 0.19
    with pytest.raises(ConfigError, match="no pattern"):
        erasures(2, 3, 1, "monday")
    for missing in (0, 3, -1):
        with pytest.raises(ConfigError, match="missing must be 1 to 2"):
            erasures(2, 3, missing, "random")
    with pytest.raises(ConfigError, match="one shard only"):
        erasures(2, 1, 1, "random")


@pytest.mark.parametrize("delay", [1, 3])
def test_late_rows_are_known_after_their_delay(delay: int) -> None:
    """Shard 0 is always late; its gradient of step t is t + 1 everywhere."""
    grads = np.ones((10, 2, 1, 300), np.float32)
    grads[:, 0] = np.arange(1, 11)[:, None, None]
    recording = Recording(grads, np.array([300]))
    arrived = np.tile([False, True], (10, 1))
    events = []
    for kind, step in replay.play(recording, arrived, delay):
        events.append((kind, step.number))
        if kind == "late":
            continue
        t = step.number
        known = max(0, t - delay + 1)  # the last value that has come
        assert step.vectors[2, 0] == known  # h_0
        assert step.inner.known == (1.0 if known else 0.0)
        assert step.inner.staleness == (delay if known else 0)
        np.testing.assert_array_equal(step.missing, t + 1.0)
        np.testing.assert_array_equal(step.truth, (t + 2.0) / 2.0)
    for t in range(10):
        if t + delay < 10:
            assert events.index(("late", t)) < events.index(("step", t + delay))
            assert events.index(("late", t)) > events.index(("step", t + delay - 1))
        else:
            assert ("late", t) not in events


def test_results_are_corrected_when_late_rows_come() -> None:
    """With delay 1 the running average is that of the true gradients."""
    recording = drifting(steps=20)
    arrived = erasures(20, 6, 2, "random")
    truths: list[np.ndarray] = []
    for kind, step in replay.play(recording, arrived):
        if kind == "late":
            continue
        if truths:
            average = truths[0]
            for g in truths[1:]:
                average = 0.9 * average + 0.1 * g
            np.testing.assert_allclose(step.vectors[-1], average, atol=1e-6)
            np.testing.assert_allclose(step.vectors[-2], truths[-1], atol=1e-6)
        truths.append(step.truth)


def test_micro_batches_arrive_one_by_one() -> None:
    grads = np.random.default_rng(0).normal(size=(2, 3, 4, 10))
    recording = Recording(grads, np.array([10]))
    arrived = np.ones((2, 3, 4), bool)
    arrived[:, 1, 1:] = False
    steps = [s for kind, s in replay.play(recording, arrived) if kind == "step"]
    assert steps[0].arrivals.fraction.tolist() == [1.0, 0.25, 1.0]
    np.testing.assert_allclose(steps[0].missing, grads[0, 1, 1:].mean(axis=0))
    np.testing.assert_allclose(steps[0].arrivals.rows[1], grads[0, 1, 0])
    assert steps[0].inner.partial == pytest.approx(1.0)
    # A shard of which only a part has come is not remembered yet.
    np.testing.assert_allclose(steps[1].vectors[4], grads[0, 1].mean(axis=0))


def test_a_vector_can_be_dropped() -> None:
    recording, arrived = drifting(steps=3), erasures(3, 6, 1, "random")
    for _, step in replay.play(recording, arrived, drop=("previous",)):
        assert not step.inner.gram[:, 1].any()
        assert not step.label.target[:, 1].any()
        assert step.inner.gram[:, 0, 0].all()


def test_tiles() -> None:
    assert tiles_of([10, 500, 3, 400, 7]).tolist() == [0, 510, 920]
    assert tiles_of([10]).tolist() == [0, 10]
    assert tiles_of([300, 10]).tolist() == [0, 310]
    assert tiles_of([0, 300, 0, 300]).tolist() == [0, 300, 600]


GOOD = {"grads": np.ones((4, 3, 5), np.float32), "tensor_sizes": np.array([2, 3])}


def test_a_recording_of_somebody_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{**GOOD, "grads": GOOD["grads"].astype(np.float16)})
    got = load(tmp_path / "a.npz")
    assert got.grads.shape == (4, 3, 1, 5)
    assert got.population is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": None}, "no 'grads'"),
        ({"tensor_sizes": None}, "no 'tensor_sizes'"),
        ({"grads": np.ones((4, 3))}, r"grads is \(4, 3\)"),
        ({"grads": np.ones((0, 3, 5))}, r"grads is \(0, 3, 5\)"),
        ({"grads": np.ones((4, 3, 5), int)}, "int64"),
        ({"tensor_sizes": np.array([2, 2])}, "sum up to 4, gradients have 5"),
        ({"tensor_sizes": np.array([6, -1])}, "tensor_sizes"),
        ({"tensor_sizes": np.array([2.0, 3.0])}, "tensor_sizes"),
        ({"grads": np.full((4, 3, 5), np.nan)}, "NaN or Inf"),
        ({"grads": np.full((4, 3, 5), np.inf, np.float16)}, "float32 if float16"),
        ({"micro": np.array(2)}, "not a multiple of micro=2"),
        ({"micro": np.array(0)}, "micro=0"),
        ({"population": np.ones((4, 4))}, "population is"),
        ({"population": np.full((4, 5), np.nan)}, "population has NaN"),
    ],
)
def test_bad_recordings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {n: a for n, a in {**GOOD, **change}.items() if a is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "bad.npz")


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", **GOOD)
    raw = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", GOOD["grads"])
    for name in ("cut.npz", "text.npz", "empty.npz", "array.npy", "absent.npz", "."):
        with pytest.raises(ConfigError, match="cannot read"):
            load(tmp_path / name)


def test_erasures_must_fit() -> None:
    recording = drifting(steps=3)
    with pytest.raises(ConfigError, match="arrived is"):
        list(replay.play(recording, np.ones((3, 5), bool)))
    with pytest.raises(ConfigError, match="delay"):
        list(replay.play(recording, np.ones((3, 6), bool), delay=0))
