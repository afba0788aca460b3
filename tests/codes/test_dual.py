"""Decoding by the dual system against least squares."""

from __future__ import annotations

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.codes.dual import Dual


@pytest.mark.parametrize(
    "code",
    [
        codes.cyclic(1, stragglers=0),
        codes.cyclic(5, stragglers=0),
        codes.cyclic(7, stragglers=6),
        codes.cyclic(12, stragglers=3),
        codes.cyclic(40, stragglers=5),
    ],
    ids=lambda c: c.describe(),
)
def test_weights_are_those_of_least_squares(code: codes.Code) -> None:
    random = np.random.default_rng(3)
    for missing in range(code.workers + 1):
        for _ in range(4):
            mask = np.ones(code.workers, bool)
            mask[random.choice(code.workers, missing, replace=False)] = False
            got, want = code.decode(mask), code.decode_reference(mask)
            assert got.covers == want.covers == (missing <= code.tolerance())
            scale = 1 + np.abs(want.weights).max()
            np.testing.assert_allclose(got.weights, want.weights, atol=1e-6 * scale)
            np.testing.assert_allclose(got.deficit, want.deficit, atol=1e-7)
            assert not got.weights[~mask].any()


def test_at_scale_any_arrival_set_that_must_decode_does() -> None:
    code = codes.cyclic(256, stragglers=27)
    random = np.random.default_rng(4)
    for lost in (0, 1, 13, 27, 27, 27):
        mask = np.ones(256, bool)
        mask[random.choice(256, lost, replace=False)] = False
        found = code.dual.decode(mask)
        assert found is not None, "fell back to least squares"
        assert code.decode(mask).covers
    run = np.ones(256, bool)
    run[100:127] = False  # neighbours
    assert code.decode(run).covers


def test_a_matrix_whose_rows_do_not_give_the_sum() -> None:
    b = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = Dual(b).decode(np.array([True, False, True]))
    assert found is not None
    weights, deficit = found
    np.testing.assert_allclose(weights, [0.0, 0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(deficit, [0.0, 0.0, 1.0], atol=1e-12)


def test_ill_conditioned_systems_fall_back() -> None:
    # The first row alone gives the sum, and the second differs only by rounding.
    b = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]])
    for mask in ([True, False], [False, True], [True, True]):
        found = Dual(b).decode(np.array(mask))
        if found is not None:
            weights, deficit = found
            np.testing.assert_allclose(1.0 - weights @ b, deficit, atol=1e-8)
            assert not weights[~np.array(mask)].any()
