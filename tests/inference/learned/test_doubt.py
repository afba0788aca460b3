"""Doubts are calibrated; the isotonic map is the one of its definition."""

from __future__ import annotations

import numpy as np
import torch

from codedgrad.inference.learned.doubt import Doubt, _isotonic


def min_max(loss: np.ndarray) -> np.ndarray:
    """Isotonic regression as it is defined: max over a <= i of min over b >= i."""
    n = len(loss)
    means = np.array([[loss[a : b + 1].mean() if a <= b else np.inf for b in range(n)]
                      for a in range(n)])  # fmt: skip
    return np.array([max(means[a, i:].min() for a in range(i + 1)) for i in range(n)])


def test_isotonic_regression_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    score = rng.permutation(30).astype(float)
    loss = (rng.random(30) < score / 30).astype(float)
    order = np.argsort(score)
    scores, levels = _isotonic(score, loss)
    wanted = min_max(loss[order])
    assert np.allclose(np.unique(levels), np.unique(wanted))
    assert (np.diff(scores) > 0).all()
    assert (np.diff(levels) >= 0).all()


def test_a_doubt_is_the_share_of_wrong_answers() -> None:
    rng = torch.Generator().manual_seed(0)
    signs = torch.randn(40_000, 3, generator=rng)
    chance = torch.sigmoid(2 * signs[:, 0] - signs[:, 1].square() - 2)
    losses = (torch.rand(40_000, generator=rng) < chance).double()
    doubt = Doubt.fit(signs[:20_000], losses[:20_000])
    found = doubt(signs[20_000:])
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)):
        here = (found >= low) & (found < high)
        told, seen = found[here].mean(), losses[20_000:][here].mean()
        assert abs(float(told) - float(seen)) < 0.04


def test_a_sign_that_is_no_number_is_all_doubt() -> None:
    doubt = Doubt.fit(torch.randn(50, 2), torch.zeros(50))
    assert float(doubt(torch.tensor([[float("nan"), 0.0]]))) == 1.0


def test_answers_of_the_same_step_keep_an_order() -> None:
    signs = torch.linspace(-3, 3, 200)[:, None]
    losses = (signs[:, 0] > 2).double()
    found = Doubt.fit(signs, losses)(signs)
    assert bool((found.diff() > 0).all())
