"""The gate keeps its promise, falls back when it is broken, and comes back."""

from __future__ import annotations

import numpy as np
import pytest

from codedgrad.errors import ConfigError
from codedgrad.inference.learned.gate import NOTHING, Gate, GateSettings, restored

GRID = np.linspace(0.02, 1, 50)


def answers(
    rng: np.random.Generator, count: int, worse: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Doubts d, and losses of probability d^3, times `worse`."""
    doubts = rng.random(count)
    return doubts, (rng.random(count) < np.minimum(1, worse * doubts**3)).astype(float)


def calibrated(seed: int, error: float = 0.01, count: int = 4000) -> Gate:
    gate = Gate(GRID.tolist(), GateSettings(error=error))
    gate.calibrate(*answers(np.random.default_rng(seed), count))
    return gate


def test_the_true_error_of_what_is_trusted_is_within_the_bound() -> None:
    # Of doubts up to t the mean loss is t^3 / 4, so t = 0.342 is the largest allowed.
    found = np.array([calibrated(seed).threshold for seed in range(100)])
    assert (found**3 / 4 > 0.01).mean() <= 0.05
    assert np.median(found) >= 0.24


def test_the_confidence_holds_for_all_choices_of_a_stream() -> None:
    """Everything has one doubt, and loses a little more than is allowed.

    A choice that is new every 100 answers at the full confidence opens in a third of
    such streams.
    """
    settings, runs, opened = GateSettings(error=0.02, window=1000, every=100), 60, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        gate = Gate([1.0], settings)
        losses = (rng.random(6000) < 0.0205).astype(float)
        gate.calibrate(np.full(1000, 0.5), losses[:1000])
        was_open = gate.threshold > NOTHING
        for i in range(1000, 6000, 100):
            gate.observe(np.full(100, 0.5), losses[i : i + 100])
            was_open |= gate.threshold > NOTHING
        opened += was_open
    assert opened <= 0.05 * runs + 3  # two deviations of the count


@pytest.mark.parametrize("count", [0, 50])
def test_too_few_answers_show_nothing(count: int) -> None:
    assert calibrated(0, count=count).threshold == NOTHING


def test_an_error_of_zero_is_exact_only() -> None:
    assert calibrated(0, error=0.0).threshold == NOTHING


def test_a_calm_gate_rarely_falls_back() -> None:
    rng = np.random.default_rng(1)
    gate = calibrated(0)
    for _ in range(200):
        gate.observe(*answers(rng, 100))
    assert gate.alarms <= 1
    assert gate.threshold >= 0.16
    assert gate.seen == 20_000


def test_it_falls_back_after_a_shift_and_trusts_again_what_it_may() -> None:
    rng = np.random.default_rng(2)
    gate = calibrated(0)
    gate.observe(*answers(rng, 3000))
    count = 0
    while gate.threshold > NOTHING and count < 200:
        gate.observe(*answers(rng, 1, worse=100.0))
        count += 1
    assert gate.threshold == NOTHING
    assert gate.alarms == 1
    for _ in range(60):
        gate.observe(*answers(rng, 100, worse=100.0))
    # Of doubts up to t the mean loss is now 25 t^3.
    assert gate.threshold == NOTHING or 25 * gate.threshold**3 <= 0.01
    for _ in range(240):
        gate.observe(*answers(rng, 100))
    assert gate.threshold >= 0.2


def test_one_at_a_time_or_many_at_once_is_the_same() -> None:
    rng = np.random.default_rng(3)
    doubts, losses = answers(rng, 400, worse=20.0)
    one, many = calibrated(0), calibrated(0)
    many.observe(doubts, losses)
    for doubt, loss in zip(doubts, losses, strict=True):
        one.observe(np.array([doubt]), np.array([loss]))
    assert one.alarms == many.alarms == 1
    assert one.state() == many.state()


def test_a_state_is_restored_whole() -> None:
    gate = calibrated(4)
    gate.observe(*answers(np.random.default_rng(5), 300))
    again = restored(gate.state())
    assert again.state() == gate.state()
    more = answers(np.random.default_rng(6), 900)
    gate.observe(*more)
    again.observe(*more)
    assert again.state() == gate.state()


@pytest.mark.parametrize(
    "wrong", [{"error": 1.0}, {"error": -0.1}, {"confidence": 0.2}, {"every": 0}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GateSettings(**wrong)
