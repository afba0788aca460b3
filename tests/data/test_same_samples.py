"""A sample has the same bits whoever reads it: workers, loader processes, delays."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, WeightedRandomSampler

from codedgrad import DataError, ShardSampler

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SIZE, BATCH, MICRO = 93, 40, 2
WEIGHTS = [1.0 + i % 4 for i in range(SIZE)]


class Augmented(Dataset[Any]):
    """Draws from three generators, and takes its time."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        time.sleep(0.0004 * random.SystemRandom().random())
        noise = torch.rand(5) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return index, noise + index


def collate(items: list[Any]) -> list[str]:
    """What every sample of a batch is, as a digest."""
    return [f"{i} {hashlib.md5(x.numpy().tobytes()).hexdigest()}" for i, x in items]


def sampler_of(kind: str, processes: int) -> ShardSampler:
    words: dict[str, Any] = {"num_workers": processes} if processes else {}
    if kind == "weighted":
        words["sampler"] = WeightedRandomSampler(WEIGHTS, 110)
    sampler = ShardSampler(Augmented(), BATCH, seed=6, collate_fn=collate, **words)
    sampler.set_epoch(1)
    return sampler


def read(sampler: ShardSampler, workers: int, worker: int, stop: int = 9) -> list[Any]:
    """What a worker reads: its own shards, and a piece of its neighbour's."""
    own = worker * MICRO, (worker + 1) * MICRO
    other = (own[1]) % (workers * MICRO)
    found = []
    steps = sampler.steps(workers * MICRO, workers, whole=True, own=[own])
    for step in steps:
        helped = step.fetch(other)[0] if step.sizes[other] else []
        mine = step.fetch(*own)[0] if step.samples(*own) else []
        found.append((mine, helped, step.request(other)[1].tolist()))
        step.note_used()
        if len(found) == stop:
            break
    steps.close()
    return found


def truth(kind: str) -> dict[int, str]:
    """Every sample of the epoch by number, in order, as one process reads it alone."""
    numbers = sampler_of(kind, 0)._order.of(1)
    reader = sampler_of(kind, 0).reader
    return {
        int(n): reader.batch((1, numbers[i : i + 1]), int)[0]
        for i, n in enumerate(numbers)
    }


@pytest.mark.parametrize("kind", ["shuffled", "weighted"])
def test_whoever_reads_a_sample(kind: str) -> None:
    want = truth(kind)
    assert len(set(want.values())) == len(want)
    for n, processes in [(1, 0), (1, 3), (2, 1), (4, 0), (4, 1), (5, 0), (5, 3)]:
        by_worker = [read(sampler_of(kind, processes), n, w) for w in range(n)]
        steps = zip(*by_worker, strict=True)
        found = [x for step in steps for own, _, _ in step for x in own]
        assert found == list(want.values()), (n, processes)
        for _, helped, numbers in (step for steps in by_worker for step in steps):
            assert helped == [want[number] for number in numbers]


@pytest.mark.parametrize("kind", ["shuffled", "weighted"])
def test_whoever_goes_on_in_mid_epoch(kind: str) -> None:
    want = truth(kind).values()
    for workers, processes, others in ((2, 1, 5), (4, 0, 1), (1, 3, 2)):
        found, states = [], []
        for w in range(workers):
            sampler = sampler_of(kind, processes)
            found.append(read(sampler, workers, w, stop=1)[0][0])
            states.append(sampler.state_dict())
        assert all(state == states[0] for state in states)
        for w in range(others):
            sampler = sampler_of(kind, 1)
            sampler.load_state_dict(states[0])
            found += [own for own, _, _ in read(sampler, others, w)]
        assert sorted(x for own in found for x in own) == sorted(want)


def test_what_was_helped_with_in_several_steps_is_read_ahead() -> None:
    def ahead(helped: range) -> list[tuple[int, bool, bool]]:
        sampler = ShardSampler(Where(), 8, num_workers=1, prefetch_factor=1)
        found = []
        for step in (steps := sampler.steps(4, 2, own=[(0, 2)])):
            own = bool(step.fetch(0, 2)[0].all())
            if step.index in helped:
                found.append((step.index, own, bool(step.fetch(3)[0].all())))
        steps.close()
        return found

    found = ahead(range(2, 9))
    assert all(own for _, own, _ in found)
    assert [helped for _, _, helped in found] == [False] * 3 + [True] * 4
    assert not any(helped for _, _, helped in ahead(range(2, 11, 2)))


def test_an_error_in_what_nobody_wants_any_more_is_none() -> None:
    sampler = ShardSampler(Unreadable(), 8, shuffle=False, num_workers=1)
    steps = sampler.steps(4, 2, own=[(0, 2)])
    left_out = [step for step in steps if step.index != 1 and step.fetch(0, 2)]
    assert len(left_out) == 11
    step = next(again := sampler.steps(4, 2, own=[(0, 2)]))
    step = next(again)
    with pytest.raises(DataError, match="sample 9 of the dataset"):
        step.fetch(0, 2)
    again.close()


class Where(Dataset[Any]):
    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> bool:
        return torch.utils.data.get_worker_info() is not None


class Unreadable(Where):
    def __getitem__(self, index: int) -> bool:
        if index == 9:
            raise OSError("no such file")
        return True
