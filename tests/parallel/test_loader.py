"""Loader processes: the same bits as without, whoever reads what."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import everywhere

import codedgrad
from codedgrad import codes

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more processes than cores, on purpose
SAMPLES, BATCH, EPOCHS = 70, 24, 2
SLOW = "slow:worker=1,factor=8"


class Augmented(Dataset[Any]):
    """Draws from three generators; notes in which process it was read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        noise = torch.rand(5) + float(np.random.rand()) + random.random()  # noqa: NPY002
        read_ahead = torch.utils.data.get_worker_info() is not None
        return noise + index / 10, index % 3, read_ahead


class InBatches(Augmented):
    """Gives several samples at once, as data sets of Hugging Face do."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


def mixed(samples: list[Any]) -> Any:
    """A collate function that draws."""
    x, y, ahead = zip(*samples, strict=True)
    return torch.stack(x) * torch.rand(()), torch.tensor(y), torch.tensor(ahead)


class Trainer:
    """Small training runs; `ahead` counts the samples that were read ahead."""

    def __init__(self) -> None:
        self.ahead = self.read = 0

    def run(self, data: Any = None, collate: Any = None, **how: Any) -> str:
        words = ("num_workers", "persistent_workers", "prefetch_factor")
        loading: Any = {k: how.pop(k) for k in words if k in how}
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"same_bits": True, "faults": "", **how}
        coded = codedgrad.CodedGradient(model, settings.pop("code", None), **settings)
        sampler = codedgrad.ShardSampler(
            data or Augmented(), BATCH, seed=3, collate_fn=collate, **loading
        )

        def loss_fn(x: Tensor, y: Tensor, ahead: Tensor) -> Tensor:
            self.ahead, self.read = self.ahead + int(ahead.sum()), self.read + len(y)
            return nn.functional.cross_entropy(model(x), y)

        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            for shards in coded.steps(sampler):
                coded.backward(loss_fn, shards)
                optimizer.step()
                optimizer.zero_grad()
        coded.close()
        found = str([p.tolist() for p in model.parameters()])
        assert len(set(everywhere(found))) == 1
        return found


def code() -> Any:
    """One whose micro-batches do not depend on the number of workers."""
    n = codedgrad.size()
    return codes.spread(n, micro=12 // n) if 12 % n == 0 else None


@pytest.mark.parametrize("data", [Augmented, InBatches])
@pytest.mark.parametrize("collate", [None, mixed])
def test_any_number_of_processes(data: Any, collate: Any) -> None:
    """Without helpers every own sample is read ahead, and no bit is another."""
    want = Trainer().run(data(), collate, code=code(), patience=100.0)
    for processes in (1, 3):
        trainer = Trainer()
        found = trainer.run(
            data(), collate, code=code(), patience=100.0, num_workers=processes
        )
        assert found == want
        assert trainer.ahead == trainer.read > 0


def test_any_number_of_workers() -> None:
    """What one process computes, micro-batch by micro-batch."""
    if code() is None:
        return
    found = Trainer().run(code=code(), num_workers=1)
    n = codedgrad.size()
    sampler = codedgrad.ShardSampler(Augmented(), BATCH, seed=3)
    sampler.set_epoch(1)
    alone = [s.fetch(p) for s in sampler.steps(12) for p in range(12) if s.sizes[p]]
    assert len(set(everywhere(str(alone)))) == 1
    if n == 1:
        again = Trainer().run(code=codes.uncoded(1, micro=12), num_workers=2)
        assert again == found


@pytest.mark.parametrize("persistent", [True, False])
def test_helpers_and_late_workers(*, persistent: bool) -> None:
    want = Trainer().run(patience=100.0)
    faults = SLOW if codedgrad.size() > 1 else ""
    trainer = Trainer()
    found = trainer.run(
        patience=0.0, faults=faults, num_workers=2, persistent_workers=persistent
    )
    assert found == want
    assert trainer.ahead > 0


def test_whole_passes_and_required_items() -> None:
    n = codedgrad.size()
    plans: list[Any] = [{"same_bits": False}, {"code": codes.fractional(n, copies=n)}]
    for how in plans:
        want = Trainer().run(patience=100.0, **how)
        trainer = Trainer()
        assert trainer.run(patience=100.0, num_workers=1, **how) == want
        assert trainer.ahead == trainer.read > 0


def test_steps_that_are_left_out_or_made_twice() -> None:
    """A loop may skip steps, leave an epoch and begin it again."""
    model = nn.Linear(5, 3)
    coded = codedgrad.CodedGradient(model, same_bits=True)
    losses = []

    def loss_fn(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    for processes in (0, 2):
        sampler = codedgrad.ShardSampler(Augmented(), 12, num_workers=processes)
        for leave in (3, 1, 9):
            for index, shards in enumerate(coded.steps(sampler)):
                if index in (0, 2):
                    continue
                losses.append(float(coded.backward(loss_fn, shards)))
                losses.append(float(coded.backward(loss_fn, shards)))
                model.zero_grad()
                if index == leave:
                    break
    coded.close()
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]
