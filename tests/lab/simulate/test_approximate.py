"""Owners that settle: they are exact at max_error 0, and follow formulas elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.lab import simulate
from codedgrad.lab.simulate import from_ratios
from codedgrad.lab.simulate.lag import Lag, Late

RANDOM = np.random.default_rng(0)
RATIOS = 1.0 + 0.5 * RANDOM.exponential(size=(60, 12)) ** 3


def one_slow(factor: float, n: int = 8, steps: int = 3) -> np.ndarray:
    ratios = np.ones((steps, n))
    ratios[:, -1] = factor
    return ratios


@pytest.mark.parametrize("model", simulate.MODELS)
@pytest.mark.parametrize("partial", [0, 1])
def test_without_an_allowed_error_it_is_the_exact_policy(
    model: str, partial: int
) -> None:
    times = from_ratios(RATIOS, model)
    for copies in (0, 1, 2):
        out = simulate.run(
            f"approximate:max_error=0,copies={copies},partial={partial},micro=4", times
        )
        spread = simulate.run(f"spread:copies={max(1, copies)},micro=4", times)
        if copies:
            np.testing.assert_array_equal(out.step, spread.step)
            np.testing.assert_array_equal(out.redundant, spread.redundant)
        elif model == "rate":
            np.testing.assert_array_equal(out.step, simulate.run("sync", times).step)
        assert (out.lost, out.notes["mean_error"], out.notes["settled_share"]) == (
            0.0, 0.0, 0.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "step", "lost"),
    [
        # Half are there at 1, and the patience ends at 1.1. With rho = 1/8, e is 1/7.
        ("max_error=0.15,partial=0,patience=0.1", 1.1, 1 / 8),
        ("max_error=0.14,partial=0,patience=0.1", 3.0, 0.0),
        ("max_error=0.14,partial=0,patience=0.1,noise=0.9", 1.1, 1 / 8),
        # A quarter of the late shard comes every 0.75, so rho is 3/32, 2/32, 1/32.
        ("max_error=0.11,micro=4", 1.1, 3 / 32),
        ("max_error=0.1,micro=4", 1.5, 2 / 32),
        ("max_error=0.04,micro=4", 2.25, 1 / 32),
        ("max_error=0.03,micro=4", 3.0, 0.0),
        ("max_error=inf,patience=0.3", 1.3, 3 / 32),
        ("max_error=inf,patience=5", 3.0, 0.0),
        # Helpers finish the late shard at 1.35; three quarters of it are not enough.
        ("max_error=0.01,partial=0,copies=1", 1.35, 0.0),
    ],
)
def test_one_straggler(settings: str, step: float, lost: float) -> None:
    out = simulate.run(f"approximate:{settings}", from_ratios(one_slow(3.0, steps=1)))
    assert out.step.tolist() == pytest.approx([step])
    assert out.lost == pytest.approx(lost)
    assert out.notes["mean_error"] == pytest.approx(lost / (1 - lost) * (
        0.9 if "noise" in settings else 1.0
    ))  # fmt: skip


@pytest.mark.parametrize("model", simulate.MODELS)
def test_a_larger_allowed_error_is_never_slower(model: str) -> None:
    ratios = 1.0 + RANDOM.exponential(size=(200, 16)) ** 3
    times = from_ratios(ratios, model)
    found = [
        simulate.run(f"approximate:max_error={e}", times) for e in (0, 0.03, 0.3, "inf")
    ]
    steps = [float(f.step.mean()) for f in found]
    assert steps == sorted(steps, reverse=True)
    errors = [f.notes["mean_error"] for f in found]
    assert errors == sorted(errors)
    assert errors[1] <= 0.03
    assert errors[2] <= 0.3


def begins(window: int, pace: float, steps: int) -> list[float]:
    """Return when a worker with passes of `pace` begins, in steps that take 1."""
    late, none, found = Late(1, window), np.zeros(1), []
    for _ in range(steps):
        found.append(float(late.begin(none)[0]))
        late.end(none, 1.0, np.full(1, pace))
    return found


def test_late_workers_go_on_and_skip() -> None:
    # Four rows are missed, and the worker goes on with the fifth pass. It leaves the
    # pass that begins at 0.5 at the end of its step.
    want = [0, 0, 0, 0, 0, 2.5, 1.5, 0.5, 0, 2.5, 1.5, 0.5, 0]
    assert begins(16, 3.5, len(want)) == pytest.approx(want)
    # Half a window later it skips to the present.
    assert begins(4, 100.0, 7) == pytest.approx([0, 0, 99, 98, 0, 99, 98])
    assert begins(1, 100.0, 4) == [0, 0, 0, 0]


def test_nobody_goes_on_after_a_covered_step() -> None:
    a, b = Lag(4, 5), Late(4, 5)
    for row in RANDOM.exponential(size=(50, 4)):
        assert a.wait() == b.wait()
        np.testing.assert_array_equal(a.begin(row), b.begin(row))
        a.end(row, 0.7)
        b.end(row, 0.7)


def test_a_stall_is_not_left_and_not_met_twice() -> None:
    late = Late(1, window=16)
    stall, none, pace = np.full(1, 2.5), np.zeros(1), np.ones(1)
    late.missed[:] = 4
    late.begin(stall)
    late.end(stall, 1.0, pace)  # it stalls until 2.5 and goes on until 3.5
    assert (late.rest[0], late.work[0]) == pytest.approx((1.5, 1.0))
    late.begin(stall)
    late.end(stall, 1.0, pace)  # it has not begun this step
    assert (late.rest[0], late.work[0]) == pytest.approx((0.5, 1.0))
    assert late.begin(none)[0] == pytest.approx(1.5)
    late.end(none, 1.0)
    assert late.begin(none)[0] == pytest.approx(0.5)
    late.end(none, 1.0)
    assert late.begin(none)[0] == 0.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("approximate:max_error=-1", "max_error >= 0"),
        ("approximate:max_error=nan", "max_error >= 0"),
        ("approximate:noise=inf", "finite noise"),
        ("approximate:micro=0", "micro, window >= 1"),
        ("approximate:partial=2", "partial 0 or 1"),
        ("approximate:patience=-1", "patience is 0 to 100"),
        ("approximate:maxerror=1", "it takes max_error=...,patience=..."),
    ],
)
def test_bad_settings(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate.run(policy, from_ratios(np.ones((2, 8))))
