"""When an idle worker begins to help."""

from __future__ import annotations

import pytest

from codedgrad import ConfigError
from codedgrad.step.patience import Patience


def warm(setting: float = 0.1) -> Patience:
    patience = Patience(setting)
    for _ in range(3):
        assert patience.seconds(0.5) >= 0.5  # the first times say little
    return patience


def test_it_is_a_fraction_of_the_usual_pass() -> None:
    assert warm().seconds(0.5) == pytest.approx(0.05)
    assert warm(3.0).seconds(0.5) == pytest.approx(1.5)


def test_a_preempted_worker_is_not_helped() -> None:
    assert warm().seconds(0.01) == pytest.approx(0.003)
    assert warm().seconds(0.001) == pytest.approx(0.001)
    assert warm(0.0).seconds(0.01) == 0.0


def test_useless_help_makes_it_longer_but_never_more_than_a_pass() -> None:
    patience = warm()
    for _ in range(20):
        patience.helped(useful=False)
    assert 0.45 < patience.seconds(0.5) <= 0.5


def test_it_forgets() -> None:
    patience = warm()
    for _ in range(20):
        patience.helped(useful=False)
    for _ in range(200):
        patience.seconds(0.5)
    assert patience.seconds(0.5) == pytest.approx(0.05, rel=0.05)


def test_useful_help_brings_it_back() -> None:
    patience = warm()
    patience.helped(useful=False)
    patience.helped(useful=False)
    for _ in range(20):
        patience.helped(useful=True)
    assert patience.seconds(0.5) == pytest.approx(0.05)


def test_zero_grows_too() -> None:
    patience = warm(0.0)
    assert patience.seconds(0.5) == 0.0
    patience.helped(useful=False)
    assert patience.seconds(0.5) > 0.0


@pytest.mark.parametrize("setting", [-0.1, 101.0, float("nan")])
def test_bad_settings(setting: float) -> None:
    with pytest.raises(ConfigError, match="fraction of a pass"):
        Patience(setting)
