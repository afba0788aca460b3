"""The order of an epoch that a sampler of the user's gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from codedgrad import ConfigError, DataError, ShardBatchSampler, ShardSampler, codes
from codedgrad.data.drawn import _times_before

WEIGHTS = [1.0 + (i % 5) for i in range(60)]


class Drawn(Dataset[Any]):
    """Samples with random augmentation."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))


class Grouped(Sampler[int]):
    """Samples of like length beside each other, in an order that `random` draws."""

    def __len__(self) -> int:
        return 60

    def __iter__(self) -> Iterator[int]:
        groups = [list(range(i, 60, 6)) for i in range(6)]
        random.shuffle(groups)
        np.random.shuffle(groups[0])  # noqa: NPY002 (what users do)
        return chain(*groups)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SAMPLERS: dict[str, Any] = {
    "weighted": lambda: WeightedRandomSampler(WEIGHTS, 50),
    "weighted, its generator": lambda: WeightedRandomSampler(
        WEIGHTS, 50, generator=generator()
    ),
    "random": lambda: RandomSampler(range(60)),
    "a subset": lambda: SubsetRandomSampler(range(7, 40), generator=generator()),
    "grouped": Grouped,
    "a list": lambda: [5, 4, 3, 2, 1, 0] * 4,
    "longer than the data": lambda: RandomSampler(
        range(60), replacement=True, num_samples=150
    ),
}


def sampler_steps(samples: int) -> int:
    """Of 8 samples; the last one takes a single sample that would be left."""
    return samples // 8 + (samples % 8 > 1 or samples < 8)


def orders(sampler: Any, seed: int = 0) -> list[list[int]]:
    """The orders of three epochs."""
    steps = ShardSampler(Drawn(), 8, sampler=sampler, seed=seed)
    found = []
    for epoch in (0, 1, 4):
        steps.set_epoch(epoch)
        given = [s.indices(p).tolist() for s in steps.steps(4) for p in range(4)]
        assert list(chain(*given)) == steps.order().tolist()
        assert len(steps) == sampler_steps(len(steps.order()))
        found.append(list(chain(*given)))
    return found


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_an_order_follows_from_seed_and_epoch(make: Any) -> None:
    torch.manual_seed(3)
    want = orders(make())
    torch.manual_seed(77)  # another worker has drawn other numbers before
    random.seed(8)
    other = make()
    assert orders(other) == want
    assert orders(other) == want  # and no order changes what comes later
    if not isinstance(other, list):
        assert want[0] != want[1] != want[2]
        assert orders(make(), seed=1) != want


def test_the_order_is_the_samplers() -> None:
    assert orders(SequentialSampler(range(60)))[0] == list(range(60))
    weighted = orders(WeightedRandomSampler([0.0] * 30 + [1.0] * 30, 50))
    assert min(weighted[0]) >= 30
    grouped = orders(Grouped())[0]
    assert all(len({i % 6 for i in grouped[k : k + 10]}) == 1 for k in range(0, 60, 10))


def test_the_users_generators_are_as_before() -> None:
    own = generator()
    torch.manual_seed(3)
    before = own.get_state(), torch.get_rng_state(), random.getstate()
    orders(WeightedRandomSampler(WEIGHTS, 50, generator=own))
    after = own.get_state(), torch.get_rng_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2] == after[2]


def test_epochs_are_told_to_a_sampler_that_asks() -> None:
    class Curriculum(Grouped):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.epoch + 1))

    assert orders(Curriculum()) == [[0], [0, 1], [0, 1, 2, 3, 4]]


def test_a_sample_that_comes_again_is_augmented_anew() -> None:
    def batch(processes: int) -> tuple[list[int], list[float]]:
        sampler = ShardSampler(
            Drawn(), 6, sampler=[3, 3, 4, 3, 5, 4], num_workers=processes
        )
        step = next(steps := sampler.steps(1, own=[(0, 1)]))
        index, noise = step.fetch(0)
        steps.close()
        return index.tolist(), noise.tolist()

    index, noise = batch(0)
    assert index == [3, 3, 4, 3, 5, 4]
    assert len(set(noise)) == 6
    assert batch(1) == (index, noise)
    plain = next(ShardSampler(Drawn(), 6, shuffle=False).steps(1)).fetch(0)
    assert noise[0] == plain[1][3]  # the first time it is what it always is


def test_how_often_a_value_came_before() -> None:
    values = np.random.default_rng(0).integers(0, 9, 100)
    want = [int((values[:i] == v).sum()) for i, v in enumerate(values)]
    assert _times_before(values).tolist() == want


class Failing(Grouped):
    def __iter__(self) -> Iterator[int]:
        raise KeyError("xyzzy")


@pytest.mark.parametrize(
    ("sampler", "message", "error"),
    [
        (DistributedSampler(range(60), 2, 0), "DistributedSampler, which deals", 0),
        (BatchSampler(range(60), 4, False), "got list; a batch sampler", 1),
        (iter([1, 2]), "must give an order in every epoch", 0),
        (7, "must give an order in every epoch.*got int", 0),
        ([1, 60], "indices from 1 to 60.*samples 0 to 59", 1),
        ([1, -1], "indices from -1 to 1", 1),
        ([], "gave no indices in an epoch", 1),
        ([1.5], "one index after the other, got float", 1),
        (Failing(), "Failing gave no order of epoch 0: KeyError: 'xyzzy'", 2),
    ],
)
def test_what_is_no_sampler(sampler: Any, message: str, error: int) -> None:
    kind = DataError if error == 2 else ConfigError
    with pytest.raises(kind, match=message):
        next(ShardSampler(Drawn(), 8, sampler=sampler).steps(1))


def test_a_sampler_leaves_no_fixed_partition() -> None:
    with pytest.raises(ConfigError, match='leave partition="fixed" out'):
        ShardSampler(Drawn(), 8, sampler=Grouped(), partition="fixed")


def test_workers_see_that_their_orders_differ() -> None:
    def told(sampler: Any) -> dict[str, str]:
        steps = ShardSampler(Drawn(), 8, sampler=sampler)
        next(steps.steps(1))
        return dict(steps.describe(0))

    name = "order of samples from WeightedRandomSampler"
    one = told(WeightedRandomSampler(WEIGHTS, 50, generator=generator(1)))
    other = told(WeightedRandomSampler(WEIGHTS, 50, generator=generator(2)))
    assert {k for k in one if one[k] != other[k]} == {name}


def test_the_drop_in_takes_a_sampler() -> None:
    code = codes.uncoded(2)
    given = [
        list(ShardBatchSampler(Drawn(), 8, code, w, sampler=SAMPLERS["weighted"]()))
        for w in range(2)
    ]
    steps = [a + b for a, b in zip(*given, strict=True)]
    want = orders(SAMPLERS["weighted"]())[0]
    assert list(chain(*steps)) == want + want[:6]
