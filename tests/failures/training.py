"""What the cases of job.py have in common: data, and a training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import codedgrad
from codedgrad import codes

if TYPE_CHECKING:
    from collections.abc import Callable

torch.manual_seed(0)  # all workers have the same data and the same models
DATA = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
READABLE = 8
criterion = nn.CrossEntropyLoss()


class Faulty(Dataset[Any]):
    """Samples of which the last worker cannot read most: `fault` is called then."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self._fault = fault

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        if index >= READABLE and last():
            self._fault()
        return DATA[index]


def train(
    model: nn.Module,
    loss: Any = None,
    data: Any = DATA,
    batch: int = 24,
    *,
    loaders: int = 0,
    source: Any = None,
    **settings: Any,
) -> None:
    settings.setdefault("same_bits", True)  # messages name micro-batches
    coded = codedgrad.CodedGradient(model, **settings)

    def usual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(model(x), y)

    sampler = source or codedgrad.ShardSampler(data, batch, num_workers=loaders)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            coded.backward(
                (lambda x, y: loss(coded, usual(x, y))) if loss else usual, shards
            )
            descend(model)
    coded.close()


def descend(model: nn.Module) -> None:
    """A step by hand: torch's first optimizer imports for longer than this takes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    model.zero_grad()


def everybody() -> codes.Code:
    """A code in which nobody stands in for the worker at fault: its fault is met."""
    return codes.uncoded(codedgrad.size(), micro=2)


def last() -> bool:
    return codedgrad.rank() == codedgrad.size() - 1
