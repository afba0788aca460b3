"""Cases of job.py with the drop-in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import codedgrad

X = torch.ones(8, 4)


def last() -> bool:
    return codedgrad.rank() == codedgrad.size() - 1


def wrapped(model: nn.Module, **how: Any) -> torch.optim.Optimizer:
    return codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        model=model,
        **how,
    )


def dropin_different_seed() -> None:
    wrapped(nn.Linear(4, 1), seed=int(last()))


def dropin_unequal_passes() -> None:
    """One worker has a batch less, and calls step() as the others do."""
    model = nn.Linear(4, 1)
    optimizer = wrapped(model, backward_passes_per_step=2)
    for _ in range(1 if last() else 2):
        model(X).mean().backward()
    optimizer.step()


def dropin_unequal_steps() -> None:
    """One worker skips the step of a batch, in which nothing is exchanged."""
    model = nn.Linear(4, 1)
    optimizer = wrapped(model)
    for batch in range(3):
        model(X).mean().backward()
        if not (last() and batch == 1):
            optimizer.step()


def dropin_error_after_sending() -> None:
    """A backward raises after a bucket was sent, and the user goes on."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(8)])
    optimizer = wrapped(model, bucket_mb=1e-4)

    def fails(_gradient: torch.Tensor) -> None:
        raise ZeroDivisionError

    for step in range(4):
        hidden = model[0](X)
        if last() and step == 2:
            hidden.register_hook(fails)
        try:
            model[1:](hidden).mean().backward()
        except ZeroDivisionError:
            optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()


def dropin_unfrozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    optimizer = wrapped(model)
    for step in range(3):
        model.requires_grad_(step == 2)
        model[1].requires_grad_(True)
        model(X).mean().backward()
        optimizer.step()


def dropin_step_inside_backward() -> None:
    """Another recipe: the optimizer's step in a hook, to save memory."""
    model = nn.Linear(4, 1)
    optimizer = wrapped(model)
    model.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    model(X).mean().backward()
