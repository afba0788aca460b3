"""The simulator where the answer is a formula."""

from __future__ import annotations

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.lab import simulate
from codedgrad.lab.simulate import Comm, from_ratios

RANDOM = np.random.default_rng(0)
EXACT = [
    "sync",
    "fractional:copies=2",
    "cyclic:stragglers=1",
    "scheduled:copies=2",
    "scheduled:copies=3,order=staircase",
    "spread:micro=4,copies=2",
    "spread:micro=16,copies=4,patience=0",
    "partial:micro=4,copies=2",
    "approximate:max_error=0,copies=2",
]
EVERY = [*EXACT, "backup", "dsag", "dropcompute", "deadline", "sr_sgc", "m_sgc"]
EVERY += ["approximate", "approximate:max_error=inf,copies=1"]


def steps(policy: str, ratios: np.ndarray, model: str = "rate", **comm: float) -> list:
    return simulate.run(policy, from_ratios(ratios, model), Comm(**comm)).step.tolist()


@pytest.mark.parametrize("model", simulate.MODELS)
@pytest.mark.parametrize(
    ("policy", "passes"),
    [("sync", 1), ("backup", 1), ("spread", 1), ("scheduled", 1), ("partial", 1),
     ("fractional:copies=3", 3), ("cyclic:stragglers=2", 3), ("dsag", 1),
     ("deadline", 1), ("dropcompute", 1), ("sr_sgc:stragglers=2", 2),
     ("m_sgc:stragglers=2", 1.5)],
)  # fmt: skip
def test_constant_times(policy: str, passes: float, model: str) -> None:
    assert steps(policy, np.ones((5, 6)), model) == pytest.approx([passes] * 5)


def one_slow(factor: float, n: int = 8) -> np.ndarray:
    ratios = np.ones((3, n))
    ratios[:, -1] = factor
    return ratios


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        ("sync", 40.0),
        ("backup:drop=1", 1.0),
        ("fractional:copies=2", 2.0),
        ("cyclic:stragglers=1", 2.0),
        # The step is an own pass, the patience, and one whole shard.
        ("scheduled:copies=2,patience=0.1", 2.1),
        # It is an own pass, the patience, and a quarter by each of four helpers.
        ("spread:micro=4,copies=1,patience=0.1", 1.35),
        # Four pieces take 1.2 x a whole pass: only helpers pay, or all do always.
        ("spread:micro=4,copies=1,patience=0.1,piece_cost=0.1", 1.4),
        ("spread:copies=1,patience=0.1,piece_cost=0.1,same_bits=1", 1.2 * 1.35),
        # Helpers take whole shards, as where a model has batch norm.
        ("spread:micro=4,copies=1,patience=0.1,pieces=0,piece_cost=0.1", 2.1),
        ("spread:micro=7,copies=1,patience=0", 1 + 1 / 7),
        ("deadline:at=1.5", 1.5),
    ],
)
def test_one_straggler(policy: str, step: float) -> None:
    found = steps(policy, one_slow(40.0))
    assert found[1:] == pytest.approx([step] * 2)
    # Before the first step nobody knows how long a pass in pieces takes.
    assert found[0] == pytest.approx(step, rel=0.02)


def test_a_helper_is_not_faster_than_the_late_worker_itself() -> None:
    # The late worker is done at 1.2, before the help (1.1 + 0.25).
    assert steps("spread:micro=4,copies=1", one_slow(1.2)) == pytest.approx([1.2] * 3)


def test_useless_help_makes_patience_longer() -> None:
    ratios = np.tile(one_slow(1.2)[:1], (30, 1))
    work = simulate.run("spread:micro=4", from_ratios(ratios)).redundant
    assert work[0] > 0.0
    assert work[-5:].sum() == 0.0


def test_two_point_distribution() -> None:
    """If x is 5 with probability p, E max is 5 - 4 (1 - p)^n; fractional likewise."""
    p, n, count = 0.1, 8, 40_000
    ratios = np.where(RANDOM.random((count, n)) < p, 5.0, 1.0)
    assert np.mean(steps("sync", ratios)) == pytest.approx(
        5 - 4 * (1 - p) ** n, rel=0.01
    )
    pairs = 2 * (5 - 4 * (1 - p**2) ** (n // 2))
    assert np.mean(steps("fractional", ratios)) == pytest.approx(pairs, rel=0.01)
    binomial = (1 - p) ** n + n * p * (1 - p) ** (n - 1)
    want = 2 * (5 - 4 * binomial)
    assert np.mean(steps("cyclic:stragglers=1", ratios)) == pytest.approx(
        want, rel=0.01
    )


def test_sync_is_the_expected_maximum() -> None:
    n = 10
    ratios = RANDOM.exponential(size=(200_000, n)) + 1e-9
    want = sum(1 / i for i in range(1, n + 1))
    assert np.mean(steps("sync", ratios)) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("model", simulate.MODELS)
def test_bound_is_perfect_division(model: str) -> None:
    ratios = 1.0 + RANDOM.exponential(size=(50, 9))
    times = from_ratios(ratios, model)
    bound = times.bound()
    done = np.maximum(0.0, bound[:, None] - times.stall) / times.pace
    np.testing.assert_allclose(done.sum(axis=1), 9.0)
    if model == "rate":
        np.testing.assert_allclose(bound, 9 / (1 / ratios).sum(axis=1))


@pytest.mark.parametrize("policy", EXACT)
def test_no_exact_policy_beats_the_bound(policy: str) -> None:
    for scale in (0.05, 0.5, 3.0):
        ratios = 1.0 + scale * RANDOM.exponential(size=(60, 12))
        times = from_ratios(ratios)
        out = simulate.run(policy, times)
        assert (out.step >= times.bound() - 1e-9).all()
        assert out.lost == 0.0


@pytest.mark.parametrize("policy", ["spread", "scheduled", "partial"])
@pytest.mark.parametrize("model", simulate.MODELS)
def test_helping_is_never_slower_than_waiting(policy: str, model: str) -> None:
    ratios = 1.0 + RANDOM.exponential(size=(100, 16)) ** 3
    # Sums are compared, since a stall that nobody waits for reaches into later steps.
    helped, waited = (np.cumsum(steps(p, ratios, model)) for p in (policy, "sync"))
    assert (helped <= waited + 1e-6).all()


def test_a_stall_is_carried_and_fast_forwarded_over() -> None:
    ratios = np.ones((40, 8))
    ratios[3, 7] = 11.0  # one worker stands still for 10 passes, once
    out = steps("spread:micro=4,copies=1", ratios, "stall")
    assert out[3] == pytest.approx(1.35)
    assert max(out) == pytest.approx(1.35)
    assert sum(v > 1.01 for v in out) in (8, 9)  # until it is back
    # Beyond the window the others wait, and then go on.
    out = steps("spread:micro=4,copies=1,window=2", ratios, "stall")
    assert max(out) > 7.0
    assert out[-1] == pytest.approx(1.0)


def test_communication_is_two_hops() -> None:
    out = steps("sync", np.ones((2, 4)), alpha_s=1e-3, beta_s=1e-6, gradient_bytes=4000)
    assert out == pytest.approx([1 + 2 * (3e-3 + 0.75 * 4e-3)] * 2)


@pytest.mark.parametrize("policy", EVERY)
def test_figures(policy: str) -> None:
    times = from_ratios(1.0 + RANDOM.exponential(size=(30, 12)))
    found = simulate.evaluate(policy, times)
    for key in ("mean_step", "p50", "p95", "p99", "speedup", "bound_speedup",
                "share_of_bound", "redundant_work", "bytes_per_step"):  # fmt: skip
        assert np.isfinite(found[key]), key
    assert found["p50"] <= found["p95"] <= found["p99"]
    if policy == "sync":
        assert found["speedup"] == 1.0
    if policy in EXACT:
        assert found["share_of_bound"] <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("sprad", "no policy 'sprad'; there are sync, backup"),
        ("spread:micros=4", "it takes micro=...,copies=...,patience=..."),
        ("spread:micro=x", "wanted int"),
        ("sync:a=1", "sync; it takes nothing"),
        ("backup:drop=8", "drop must be 0 to 7"),
        ("fractional:copies=3", "does not divide 8"),
        ("cyclic:stragglers=8", "stragglers must be"),
        ("spread:patience=-1", "patience is 0 to 100"),
        ("dsag:wait=0", r"wait must be in \(0, 1\]"),
        ("deadline:at=0", "must be positive"),
        ("sr_sgc:burst=2,span=4", "must divide span - 1"),
        ("m_sgc:burst=3,span=2", "1 <= burst < span"),
    ],
)
def test_bad_policies(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steps(policy, np.ones((2, 8)))


def test_missing_times() -> None:
    ratios = np.array([[1.0, 3.0, np.nan], [1.0, np.nan, np.nan], [2.0, 5.0, np.nan]])
    plain = from_ratios(ratios)
    assert plain.alone().tolist() == [[1, 3, 1], [1, 1, 1], [2, 5, 1]]
    late = from_ratios(ratios, missing_is_late=True)
    assert late.alone().tolist() == [[1, 3, 5], [1, 4, 5], [2, 5, 5]]
    assert (plain.filled, late.filled) == (4, 4)
    assert late.first(2).filled_by == late.filled_by != plain.filled_by


def test_bad_models() -> None:
    with pytest.raises(ConfigError, match="model must be one of"):
        from_ratios(np.ones((2, 2)), "ratio")
    with pytest.raises(ConfigError, match="negative"):
        Comm(alpha_s=-1.0)
