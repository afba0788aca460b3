"""A slice in a wrong place, of another step or of no worker changes the sum."""

from __future__ import annotations

import pytest
import torch
from known_gradients import STEPS, gradient

COUNT, SLICE = 1024, 16


def total(step: int, workers: list[int]) -> torch.Tensor:
    return torch.stack([gradient(w, step, COUNT) for w in workers]).sum(0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_slice_of_the_sum_is_like_another(workers: int) -> None:
    some = list(range(workers))
    found = []
    for step in range(STEPS):
        found += total(step, some).reshape(-1, SLICE).tolist()
        found += total(step, [*some[1:], 0, 0]).reshape(-1, SLICE).tolist()
    assert len({tuple(values) for values in found}) == len(found)
    assert max(map(max, found)) < 1 << 24
