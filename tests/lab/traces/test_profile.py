"""Profiles keep what matters of a log, and logs drawn from one have it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.lab import traces
from codedgrad.lab.traces import Log, Profile, fit

if TYPE_CHECKING:
    from pathlib import Path

RANDOM = np.random.default_rng(0)


def lognormal(z: np.ndarray) -> Log:
    return Log(np.exp(0.5 * z))


def test_quantiles_come_back() -> None:
    log = lognormal(RANDOM.standard_normal((400, 64)))
    again = fit(log).sample(400, 64, seed=1).ratios()
    want = log.ratios()
    for q in (0.5, 0.9, 0.99):
        assert np.quantile(again, q) == pytest.approx(np.quantile(want, q), rel=0.05)


def test_persistent_workers_come_back() -> None:
    fixed = RANDOM.standard_normal(64) + 0.2 * RANDOM.standard_normal((300, 64))
    profile = fit(lognormal(fixed))
    assert profile.worker_share > 0.9
    again = profile.sample(300, 64, seed=2).ratios()
    assert np.corrcoef(again[0], again[-1])[0, 1] > 0.8


def test_fresh_draws_stay_fresh() -> None:
    profile = fit(lognormal(RANDOM.standard_normal((300, 64))))
    assert profile.worker_share < 0.05
    assert profile.persistence < 0.1


def test_bad_stretches_last_as_long() -> None:
    z = np.empty((2000, 16))
    z[0] = RANDOM.standard_normal(16)
    for t in range(1, 2000):
        z[t] = 0.9 * z[t - 1] + np.sqrt(1 - 0.81) * RANDOM.standard_normal(16)
    profile = fit(lognormal(z))
    assert profile.persistence == pytest.approx(0.9, abs=0.06)
    again = fit(profile.sample(2000, 16, seed=3))
    assert again.persistence == pytest.approx(profile.persistence, abs=0.08)


def test_save_load_and_any_size(tmp_path: Path) -> None:
    profile = fit(lognormal(RANDOM.standard_normal((20, 5))))
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert profile.sample(7, 300, seed=1).compute.shape == (7, 300)
    same = [profile.sample(3, 3, seed=4).compute for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_shipped_profiles_name_their_source_and_licence() -> None:
    names = sorted(f.stem for f in traces.profile.SHIPPED.glob("*.json"))
    assert len(names) >= 4
    for name in names:
        profile = Profile.load(name)
        assert profile.meta["source"]
        assert profile.meta["licence"]
        ratios = profile.sample(50, 16).ratios()
        assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile nowhere: no such file, nor one"):
        Profile.load("nowhere")
    (tmp_path / "x.json").write_text('{"levels": [], "quantiles": []}')
    with pytest.raises(ConfigError, match="is no profile"):
        Profile.load(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="at least one step"):
        fit(lognormal(np.zeros((2, 2)))).sample(0, 3)
