"""Confidence bounds against their definitions, and against luck."""

from __future__ import annotations

import math

import numpy as np
import pytest

from codedgrad.inference.learned.bounds import clopper_pearson, fewest, upper


def at_most(wrong: int, count: int, p: float) -> float:
    """P(Binomial(count, p) <= wrong), as it is defined."""
    terms = (
        math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(wrong + 1)
    )
    return math.fsum(terms)


@pytest.mark.parametrize(("wrong", "count"), [(0, 5), (1, 20), (3, 40), (39, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_at_the_bound_so_few_wrong_are_as_unlikely_as_said(
    wrong: int, count: int, confidence: float
) -> None:
    bound = clopper_pearson(wrong, count, confidence)
    assert at_most(wrong, count, bound) == pytest.approx(1 - confidence, rel=1e-9)


def test_nothing_wrong_has_a_closed_form_and_all_wrong_has_no_bound() -> None:
    assert clopper_pearson(0, 598) == pytest.approx(1 - 0.05 ** (1 / 598))
    assert fewest(0.005) == 598
    assert clopper_pearson(7, 7) == 1.0
    assert upper(np.array([])) == 1.0


def test_a_mean_of_losses_is_bounded_by_hoeffding() -> None:
    losses = np.array([0.5, 0.25, 0.0, 0.0] * 50)
    bound, mean = upper(losses), 0.1875
    found = mean * math.log(mean / bound)
    found += (1 - mean) * math.log((1 - mean) / (1 - bound))
    assert found * 200 == pytest.approx(math.log(20), rel=1e-9)
    assert upper(np.zeros(200)) == clopper_pearson(0, 200)


def test_the_bound_holds_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).random((2000, 300)) < 0.02
    held = [upper(row.astype(float)) >= 0.02 for row in draws]
    assert np.mean(held) > 0.945
