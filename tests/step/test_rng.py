"""Randomness of a pass."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from references import pass_rng


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def inside(*where: int) -> tuple[float, float, float]:
    with pass_rng(*where):
        return draw()


def test_the_same_place_draws_the_same() -> None:
    assert inside(1, 2, 3) == inside(1, 2, 3)


def test_neighbours_draw_unrelated_numbers() -> None:
    places = [(s, t, p) for s in range(4) for t in range(8) for p in range(8)]
    for column in zip(*(inside(*place) for place in places), strict=True):
        assert len(set(column)) == len(places)
        assert 0.4 < float(np.mean(column)) < 0.6


def test_outer_states_are_put_back() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    want = draw(), draw()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    first = draw()
    inside(1, 1, 1)
    assert (first, draw()) == want


def test_outer_states_are_put_back_after_an_error() -> None:
    torch.manual_seed(5)
    want = float(torch.rand(()))
    torch.manual_seed(5)
    with pytest.raises(KeyError), pass_rng(0, 0, 0):
        {}[draw()]
    assert float(torch.rand(())) == want


def test_dropout_follows_the_seed() -> None:
    x = torch.ones(1000)
    masks = []
    for part in (0, 0, 1):
        with pass_rng(7, 0, part):
            masks.append(torch.nn.functional.dropout(x, 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
