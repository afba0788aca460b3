"""Models stay as they are while they are evaluated, and afterwards.

Inside, all modules are in eval mode and no gradient is recorded. Random numbers are
those of `codedgrad.data.seeding.own_rng`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from codedgrad.data.seeding import own_rng
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

_KEPT_BYTES = 64 << 20  # of buffers that are copied, to put them back


def models_of(model: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """Returns the models that are evaluated, as a list.

    Raises:
        ConfigError: something is no module.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    for one in models:
        if not isinstance(one, nn.Module):
            raise ConfigError(
                f"evaluate takes a torch module, or a list of them, got "
                f"{type(one).__qualname__}"
            )
    return models


class Guard:
    """Looks whether the function has changed a parameter or a buffer.

    Which batches a worker computes depends on who is late. So a model that changes
    while it is evaluated would give other sums in every run.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Note the state of all tensors."""
        buffers = [b for model in models for b in model.named_buffers()]
        parameters = [p for model in models for p in model.named_parameters()]
        held = [(n, t) for n, t in [*buffers, *parameters] if not t.is_inference()]
        self._tensors = [t for _, t in held]
        self._names = [n for n, _ in held]
        self._versions = self._now()
        size = sum(b.numel() * b.element_size() for _, b in buffers)
        self._kept: list[tuple[Tensor, Tensor]] = []
        if size <= _KEPT_BYTES:
            self._kept = [(b, b.detach().clone()) for _, b in buffers]

    def _now(self) -> list[int]:
        return [t._version for t in self._tensors]

    def changed(self) -> list[str]:
        """Return the names of the tensors that have changed; buffers are put back."""
        now = self._now()
        if now == self._versions:
            return []
        with torch.no_grad():
            for buffer, before in self._kept:
                buffer.copy_(before)
        return [
            name
            for name, a, b in zip(self._names, self._versions, now, strict=True)
            if a != b
        ]

    def check(self, first: int, stop: int) -> None:
        """Refuses a function that has changed the model; its buffers are put back.

        Args:
            first: the first batch since the last look.
            stop: one past the last.

        Raises:
            ConfigError: it has.
        """
        changed = self.changed()
        if not changed:
            return
        raise ConfigError(
            f"the function has changed {', '.join(map(repr, changed[:4]))} of the "
            f"model in batch {first} to {stop - 1}. Which batches a worker computes "
            f"depends on who is late, so an evaluation must leave the model as it is: "
            f"do not call train() in it, and return what it counts"
        )


@contextmanager
def undisturbed(models: Sequence[nn.Module]) -> Iterator[Guard]:
    """Inside, the models are in eval mode; modes and random numbers are put back."""
    modes = [(m, m.training) for model in models for m in model.modules()]
    try:
        for model in models:
            model.eval()
        with own_rng(), torch.no_grad():
            yield Guard(models)
    finally:
        for module, mode in modes:
            module.training = mode
