"""The scaling model where the answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scaling_check
import scaling_model
import summary
from exchange_model import Fit, Network, Point, best_fit, fit, network_of
from scaling_model import (
    CALM,
    DEFAULT,
    Job,
    Source,
    curves,
    flattens_at,
    half_up_to,
)

from codedgrad.lab import simulate, traces

COUNTS = [1, 2, 4, 8, 16, 32]
FREE = Network(0.0, 0.0)


def points(known: Fit, cores: int = 2) -> list[Point]:
    return [
        Point(n, size, known.seconds(n, size, max(1.0, n / cores)), max(1.0, n / cores))
        for n in (2, 4, 8, 16)
        for size in (4e3, 4e5, 4e6, 4e7)
    ]


@pytest.mark.parametrize("shape", ["linear", "logarithmic"])
@pytest.mark.parametrize("crowded", [False, True])
def test_exact_data_give_back_the_coefficients(shape: str, *, crowded: bool) -> None:
    known = Fit(2e-4, 2e-5, 3e-10, shape, crowded)
    found = fit(points(known), shape, crowded=crowded)
    assert found.alpha_s == pytest.approx(known.alpha_s)
    assert found.beta_s == pytest.approx(known.beta_s)
    assert found.start_s == pytest.approx(known.start_s)
    assert found.error < 1e-9
    assert found.held_out is not None
    assert found.held_out < 1e-9
    best = best_fit(points(known), linear=False)
    assert (best.shape, best.crowded) == (shape, crowded)


def test_no_coefficient_is_negative() -> None:
    known = Fit(0.0, 2e-5, 3e-10, "linear")
    off = [p._replace(seconds=p.seconds * (0.8 if p.bytes < 1e4 else 1.0))
           for p in points(known)]  # fmt: skip
    found = fit(off)
    assert min(found.start_s, found.alpha_s, found.beta_s) >= 0.0
    assert 0.0 < found.error <= found.worst


def test_the_fit_is_the_simulators_network() -> None:
    known = Fit(2e-4, 2e-5, 3e-10, "linear", crowded=True)
    network = network_of(known, 1e6)
    for n in (1, 2, 9):
        assert 2 * network.hop_s(n) == pytest.approx(known.seconds(n, 1e6))


def test_the_best_all_reduce() -> None:
    network = Network(1.0, 1.0, 8.0)
    # Recursive doubling: 2 x (1 + 8); halving and doubling: 4 + 12; ring: 6 + 12.
    assert network.allreduce_s(4) == pytest.approx(16.0)
    assert Network(1.0, 0.0, 8.0).allreduce_s(1024) == pytest.approx(10.0)
    assert network.allreduce_s(1) == 0.0


def test_nobody_slow_and_free_exchange_scale_perfectly() -> None:
    policies = {"sync": "sync", "uncoded": "uncoded", "codedgrad": DEFAULT}
    weak = curves(CALM, COUNTS, policies, Job(0.05), FREE)
    strong = curves(CALM, COUNTS, policies, Job(0.05, total=32.0), FREE)
    for label in [*policies, "bound"]:
        assert weak[label] == pytest.approx([0.05] * len(COUNTS))
        assert strong[label] == pytest.approx([1.6 / n for n in COUNTS])


def test_exchange_is_added_once() -> None:
    network = Network(1e-3, 1e-9, 1e6)
    seconds = curves(
        CALM, [4], {"codedgrad": DEFAULT, "uncoded": "uncoded", "sync": "sync"},
        Job(0.05), network,
    )  # fmt: skip
    hops = 2 * (3e-3 + 0.75e-3)
    assert seconds["codedgrad"] == pytest.approx([0.05 + hops])
    assert seconds["uncoded"] == pytest.approx([0.05 + hops])
    assert seconds["sync"] == pytest.approx([0.05 + network.allreduce_s(4)])


def test_smaller_micro_batches_are_charged() -> None:
    seconds = curves(
        CALM,
        [4],
        {"sync": "sync", "codedgrad": DEFAULT},
        Job(1.0, micro_cost=0.1),
        FREE,
    )
    assert seconds["sync"] == pytest.approx([1.0])
    assert seconds["codedgrad"] == pytest.approx([1.2])


def test_a_log_is_replayed_as_far_as_it_goes() -> None:
    ratios = np.ones((100, 8))
    ratios[:, 3] = 5.0
    log = traces.Log(ratios)
    source = Source(ratios, traces.fit(log))
    assert source.replays(8)
    assert not source.replays(16)
    assert source.times(8, 60, 1).alone().max() == 5.0
    assert source.times(8, 1000, 1).shape == (50, 8)
    assert source.times(8, 1000, 0).shape == (100, 8)
    # Slowness is over all workers of the log, not over those that were drawn.
    assert set(source.times(1, 60, 1).alone().ravel()) <= {1.0, 5.0}
    assert source.times(16, 20, 1).shape == (20, 16)


def test_settings_of_the_next_lower_count() -> None:
    chosen = {4: "a", 16: "b"}
    picked = [scaling_model.settings_for(chosen, n) for n in (2, 4, 15, 16, 500)]
    assert picked == ["a", "a", "a", "b", "b"]


def test_flattens_at() -> None:
    assert flattens_at([1, 2, 4, 8], [1, 2, 4, 8]) is None
    assert flattens_at([1, 2, 4, 8], [1, 1.9, 2.3, 2.4]) == 4
    assert half_up_to([1, 2, 4, 8], [10, 10, 19, 80]) == 2
    assert half_up_to([1, 2], [10, 20]) == 2


def test_backup_drops_a_twentieth() -> None:
    assert [scaling_model.dropped(n) for n in (1, 2, 16, 100)] == [0, 1, 1, 5]


@pytest.mark.parametrize(
    ("method", "step"), [("codedgrad", 1.35), ("horovod", 8.0), ("no_exchange", 8.0)]
)
def test_predicted_step_of_one_straggler(method: str, step: float) -> None:
    found = scaling_check.predict(method, 8, 8.0, 0.05, 0.0)
    assert found == pytest.approx(0.05 * step)


def test_live_files_are_checked(tmp_path: Path) -> None:
    known = Fit(1e-4, 2e-5, 3e-10, "linear", crowded=True)
    sizes = {"4 KB": 4096.0, "4 MB": 4.0 * (1 << 20), "40 MB": 40.0 * (1 << 20)}
    for n in (2, 4):
        crowd = max(1.0, n / 2)
        step = 0.05 + known.seconds(n, 1e5, crowd)
        rows = {"codedgrad": 1e3 * step, "no_exchange": 50.0, "horovod": 1e3 * step}
        cell = {k: {"median_ms": v} for k, v in rows.items()}
        exchange = {
            k: {"codedgrad": {"median_ms": 1e3 * known.seconds(n, b, crowd)}}
            for k, b in sizes.items()
        }
        file = {
            "benchmark": "bench_scaling",
            "environment": {"cores": 2, "cpu": "x"},
            "results": {
                "workers": n,
                "workers_of_a_machine": n,
                "gradient_bytes": 1e5,
                "exchange": exchange,
                "weak": {"pass_ms": 50.0, "straggler_1x": cell},
            },
        }
        (tmp_path / f"scaling-{n}.json").write_text(json.dumps(file))
    files = scaling_check.read(tmp_path)
    fits = scaling_check.fits(files)
    assert set(fits) == {"codedgrad"}
    assert fits["codedgrad"].beta_s == pytest.approx(known.beta_s)
    rows = scaling_check.check(files, fits)
    # Horovod's exchange was not fitted: its step is not predicted.
    assert {r["method"] for r in rows} == {"codedgrad", "no_exchange"}
    assert all(abs(r["told_error"]) < 1e-3 for r in rows)
    with pytest.raises(SystemExit, match="holds no scaling-N"):
        scaling_check.read(tmp_path / "none")


def test_summary(tmp_path: Path) -> None:
    def median(ms: float) -> dict[str, float]:
        return {"median_ms": ms, "p25_ms": ms, "p75_ms": ms}

    step = {"codedgrad": median(9), "horovod": median(10), "ddp_gloo": median(8)}
    text = {"results": {"straggler_1x": step}}
    (tmp_path / "step-digits-2.json").write_text(json.dumps(text))
    found = summary.page(tmp_path, [2, 4, 8], 4)
    assert "| digits, 2 workers | 9.00 | 0 % | 0.900 | 1.125 |" in found
    assert "steps, over Horovod: mean 0.900" in found
    assert "target 0.95: met so far" in found
    assert "1 of 1 above 1.02: **missed**; 8 cells not measured" in found
    assert "exchange, over DDP: nothing measured" in found


def test_shipped_profiles_without_logs() -> None:
    found = scaling_model.sources(None)
    assert "EC2" in found
    times = found["EC2"].times(64, 5, 1)
    assert times.shape == (5, 64)
    assert isinstance(times, simulate.Times)
