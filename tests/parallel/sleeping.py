"""A model that takes a while and no core, queries for it, and a stand-in."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import codedgrad

SLEEP_S = 1e-3


class Sleeping(nn.Module):
    """A layer that takes a while, and no core."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.seconds = SLEEP_S

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.layer(x).tanh()


def model(layers: int = 4) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(*(Sleeping() for _ in range(layers)))


def queries(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + codedgrad.rank())
    return [torch.randn(1 + i % 3, 6, generator=generator) for i in range(count)]


def plain(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return net(x)


class StandIn:
    """Doubts what its first feature says; it takes no time."""

    def __init__(self, doubt: float, threshold: float = 0.5) -> None:
        self.doubt, self.threshold = doubt, threshold
        self.calls = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return torch.full((len(x), 6), 7.0), torch.full((len(x),), self.doubt)
