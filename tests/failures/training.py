"""What the cases of job.py have in common: data, and a training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes

torch.manual_seed(0)  # all workers have the same data and the same models
DATA = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
criterion = nn.CrossEntropyLoss()


def train(
    model: nn.Module,
    loss: Any = None,
    data: Any = DATA,
    batch: int = 24,
    **settings: Any,
) -> None:
    settings.setdefault("same_bits", True)  # messages name micro-batches
    coded = codedgrad.CodedGradient(model, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def usual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(model(x), y)

    sampler = codedgrad.ShardSampler(data, batch)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            coded.backward(
                (lambda x, y: loss(coded, usual(x, y))) if loss else usual, shards
            )
            optimizer.step()
            optimizer.zero_grad()
    coded.close()


def everybody() -> codes.Code:
    """A code in which nobody stands in for the worker at fault: its fault is met."""
    return codes.uncoded(codedgrad.size(), micro=2)


def last() -> bool:
    return codedgrad.rank() == codedgrad.size() - 1
