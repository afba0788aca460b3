"""What the tests of the drop-in share: a model, data, and how they compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from parallel.training import everywhere
from torch import Tensor, nn

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def data(seed: int = 0) -> Tensor:
    """Eight samples of every worker, [workers, 8, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(codedgrad.size(), 8, 4, generator=generator)


def own(seed: int = 0) -> Tensor:
    return data(seed)[codedgrad.rank()]


def wrapped(of: nn.Module, **how: Any) -> torch.optim.Optimizer:
    return codedgrad.DistributedOptimizer(
        torch.optim.SGD(of.parameters(), lr=0.1, momentum=0.5),
        of.named_parameters(),
        **{"model": of, **how},
    )


def digest(model: nn.Module) -> str:
    return str([v.flatten().tolist() for v in model.state_dict().values()])


def same_everywhere(model: nn.Module) -> bool:
    return len(set(everywhere(digest(model)))) == 1


def plain_step(
    model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor]
) -> list[Any]:
    """Gradients of the mean loss of all workers, in one process."""
    for x in data():
        (loss(model, x) / codedgrad.size()).backward()
    return [p.grad for p in model.parameters()]
