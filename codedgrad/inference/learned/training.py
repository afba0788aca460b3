"""Training of a stand-in's trunk and heads by what the model answers.

Distillation as of Hinton, Vinyals and Dean (2015): AdamW with one cycle of the learning
rate, on inputs without labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codedgrad.inference.learned.trunk import head

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.inference.learned.subject import Subject


@dataclass(frozen=True)
class Distillation:
    """How a stand-in is trained.

    Attributes:
        steps: updates.
        batch: samples of an update.
        lr: the largest learning rate.
        decay: weight decay.
        timed: queries of a call whose seconds are measured, as many as are served.
        width: of the trunk; None: the largest that the cost allows.
        share: whether the model's first stage comes before the trunk; None: if that
            leaves the trunk at least half of the width that it has without.
        seed: of the first weights and the order of the samples.
    """

    steps: int = 2000
    batch: int = 128
    lr: float = 3e-3
    decay: float = 1e-3
    timed: int = 32
    width: int | None = None
    share: bool | None = None
    seed: int = 0


def train_trunk(
    net: nn.Module, shared: nn.Module, subject: Subject, training: Distillation
) -> None:
    """Train a trunk in place.

    Args:
        net: the trunk.
        shared: the frozen stages before it.
        subject: the model's answers to the samples.
        training: how.
    """

    def features(rows: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = shared(subject.inputs[rows])
        return found

    _train(net, features, subject, training)


def train_heads(subject: Subject, training: Distillation) -> dict[int, nn.Sequential]:
    """Returns trained heads by the number of stages before them."""
    heads = {}
    for depth, (shape, pooled) in enumerate(
        zip(subject.shapes, subject.pooled, strict=True), 1
    ):
        if not pooled.numel():
            continue
        net = head(shape, subject.outputs.width + 1).to(subject.device)
        _train(net[-1], pooled.__getitem__, subject, training)
        heads[depth] = net.eval().requires_grad_(False)
    return heads


def _train(
    net: nn.Module,
    features: Callable[[Tensor], Tensor],
    subject: Subject,
    training: Distillation,
) -> None:
    net.train()
    best = torch.optim.AdamW(
        net.parameters(), lr=training.lr, weight_decay=training.decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        best, training.lr, total_steps=training.steps + 1
    )
    count = len(subject.inputs)
    batch = min(training.batch, count)
    generator = torch.Generator().manual_seed(training.seed)
    order, begin = torch.randperm(count, generator=generator), 0
    for _ in range(training.steps):
        if begin + batch > count:
            order, begin = torch.randperm(count, generator=generator), 0
        rows = order[begin : begin + batch].to(subject.device)
        begin += batch
        best.zero_grad(set_to_none=True)
        values = net(features(rows))
        loss = subject.outputs.distance(values, subject.answers[rows])
        loss.backward()
        best.step()
        cycle.step()
    net.eval()
