"""Which batches are drawn small: only those whose exchange is decoded for certain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from codedgrad import ShardBatchSampler, codes
from codedgrad.step.ahead import BatchesAhead

FULL = 8


class Loop:
    """A worker that lags: all exchanges up to `decoded` are decoded without it."""

    def __init__(self, model: nn.Module, *, ahead: int, passes: Any) -> None:
        data = TensorDataset(torch.zeros(FULL * 60, 4))
        self.sampler = ShardBatchSampler(data, FULL * 2, codes.fractional(2), 0)
        self.ahead, self.passes = ahead, passes
        self.made = 0
        self.decoded = -1
        self.foresight = BatchesAhead(self.sampler, model, self)
        self.full = self.sampler.samples

    def passes_made(self) -> int:
        return self.made

    def decoded_after(self, passes: int) -> bool:
        return self.made + passes <= self.decoded

    def run(self, lag_from: int) -> list[tuple[int, range]]:
        """The size of each batch, and the exchanges in which it is used."""
        drawn, used = [], []
        batches = iter(self.sampler)
        for index in range(len(self.sampler)):
            while len(drawn) <= index + self.ahead:
                batch = next(batches, None)
                if batch is None:
                    break
                drawn.append(len(batch))
            begin = self.made
            for _ in range(self.passes(index)):
                self.foresight.is_small((torch.zeros(drawn[index], 4),))
                self.made += 1
            used.append((drawn[index], range(begin, self.made)))
            if self.made >= lag_from:
                self.decoded = max(self.decoded, self.made + 9)
        return used


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize(
    "passes",
    [
        lambda _: 1,
        lambda _: 2,
        lambda i: 1 + (i % 3 == 0),
        lambda i: int(i % 3 == 0),
        lambda i: 3 if i == 2 else 1,
    ],
)
def test_a_small_batch_is_used_in_decoded_exchanges_only(ahead: int, passes: Any):
    loop = Loop(nn.Linear(4, 1), ahead=ahead, passes=passes)
    for _epoch in range(2):
        for size, exchanges in loop.run(lag_from=12):
            if size < loop.full:
                assert size == 2
                assert all(e <= loop.decoded for e in exchanges)


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_a_worker_that_lags_skips(ahead: int) -> None:
    loop = Loop(nn.Linear(4, 1), ahead=ahead, passes=lambda _: 1)
    sizes = [size for size, _ in loop.run(lag_from=12)]
    assert sizes[:12] == [loop.full] * 12
    assert sizes.count(2) > 10


@pytest.mark.parametrize(
    "model", [None, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))]
)
def test_nothing_is_skipped_where_it_could_not_be_seen(model: Any) -> None:
    loop = Loop(model, ahead=0, passes=lambda _: 1)
    assert {size for size, _ in loop.run(lag_from=3)} == {loop.full}


def test_the_first_dimension_has_to_be_the_batch() -> None:
    loop = Loop(nn.Linear(4, 1), ahead=0, passes=lambda _: 1)
    loop.foresight.is_small((torch.zeros(3, loop.full),))
    assert {size for size, _ in loop.run(lag_from=3)} == {loop.full}
