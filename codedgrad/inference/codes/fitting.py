"""Training of a code's networks, on groups drawn from inputs without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from codedgrad.data.seeding import own_rng
from codedgrad.inference.guard import undisturbed

if TYPE_CHECKING:
    from codedgrad.inference.learned.training import Distillation


class Learned(Protocol):
    """A code that is trained."""

    model: nn.Module
    k: int

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""

    def distance(self, queries: Tensor, exact: Tensor) -> Tensor:
        """Return what training minimises."""


def fit(code: Learned, samples: Tensor, training: Distillation) -> None:
    """Train a code's networks in place; the model stays as it is.

    Args:
        code: a learned code.
        samples: inputs as queries are; groups are drawn from them.
        training: steps, groups of a step and seed.
    """
    with undisturbed([code.model]):
        exact = torch.cat([code.model(chunk) for chunk in samples.split(256)])
    with own_rng(), torch.enable_grad():
        best = torch.optim.AdamW(
            code.parameters(), lr=training.lr, weight_decay=training.decay
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            best, training.lr, total_steps=training.steps + 1
        )
        generator = torch.Generator().manual_seed(training.seed)
        for _ in range(training.steps):
            rows = torch.randint(
                len(samples), (training.batch, code.k), generator=generator
            ).to(samples.device)
            best.zero_grad(set_to_none=True)
            code.distance(samples[rows], exact[rows]).backward()
            best.step()
            cycle.step()
