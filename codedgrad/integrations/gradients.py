"""A coded step inside a framework's loop: when the gradients come into `p.grad`.

A framework's loop computes a loss, then may clear `p.grad`, and then calls `backward`
on the loss. A coded step computes both at once. So its gradients are taken out of
`p.grad` again, and the loss that the framework gets puts them back when its backward
runs, times whatever the framework has scaled it with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from codedgrad.data import StepShards
    from codedgrad.gradient import CodedGradient


class Gradients:
    """The mean gradients of one step, which are not in `p.grad` yet."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take parameters, each with its gradient."""
        self._pairs: Sequence[tuple[Tensor, Tensor]] | None = pairs

    def add(self, scale: float | Tensor = 1.0) -> None:
        """Add them, times `scale`, to `p.grad`. They are used up then.

        Raises:
            ConfigError: they were added before.
        """
        if self._pairs is None:
            raise ConfigError(
                "the backward of a coded step's loss was called twice; its gradients "
                "are those of the whole step, and are added to p.grad once"
            )
        pairs, self._pairs = self._pairs, None
        with torch.no_grad():
            for p, gradient in pairs:
                if not isinstance(scale, float) or scale != 1.0:
                    gradient.mul_(scale)
                if p.grad is None:
                    p.grad = gradient
                else:
                    p.grad.add_(gradient)


def compute(
    coded: CodedGradient, loss_fn: Callable[..., Any], shards: StepShards
) -> tuple[Tensor, Gradients]:
    """Compute a step; return its loss and its gradients, and leave `p.grad` alone."""
    parameters = list(coded.model.parameters())
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        loss = coded.backward(loss_fn, shards)
        pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient
    return loss, Gradients(pairs)


def with_backward(loss: Tensor, gradients: Gradients) -> Tensor:
    """Return the loss with a `backward` that adds the gradients to `p.grad`."""
    anchor = torch.zeros((), device=loss.device, requires_grad=True)
    later: Tensor = _Later.apply(anchor, loss, gradients)  # type: ignore[no-untyped-call]
    return later


class _Later(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, loss: Tensor, gradients: Gradients) -> Any:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *scales: Any) -> Any:
        (scale,) = scales
        ctx.gradients.add(float(scale) if scale.device.type == "cpu" else scale)
        return None, None, None
