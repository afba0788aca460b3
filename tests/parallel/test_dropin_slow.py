"""The drop-in's worker is as slow as CODEDGRAD_FAULTS asks for."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import codedgrad
from codedgrad.hvd.optimizer import detach


class Sleeps(nn.Module):
    """A pass of 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        out: torch.Tensor = self.linear(x)
        return out


def train(steps: int) -> float:
    """Seconds of a number of steps."""
    torch.manual_seed(0)
    model = Sleeps()
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        model=model,
    )
    begin = time.monotonic()
    for _ in range(steps):
        model(torch.ones(1, 2)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    spent = time.monotonic() - begin
    detach(optimizer)
    return spent


def test_faults_slow_the_drop_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEDGRAD_FAULTS", "slow:worker=0,factor=8")
    # All wait for the slow one, by sleeps that are at least as long as asked for.
    assert train(3) >= 3 * 8 * 0.02
