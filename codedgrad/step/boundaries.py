"""Module boundaries of a pass: where it can be slowed down, timed or abandoned.

Hooks before the forward of every module with parameters of its own, and after the
gradient of the first of them, call `visit` while a pass of ours runs. Modules without
parameters have none: a hook costs a module call microseconds. Nothing else of the
model is touched: gradients, user hooks and `state_dict` stay as they are.

What torch.compile traces has no boundaries inside its forward (each would break the
graph in two); those after gradients stay.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn


class Abandoned(BaseException):
    """The pass is not needed any more.

    A BaseException, so that an `except Exception` in a loss function lets it through.
    """


class Boundaries:
    """Hooks on one model, active inside `watch` only."""

    def __init__(self, model: nn.Module) -> None:
        """Attach the hooks."""
        self._visit: Callable[[], None] | None = None
        self._handles: list[Any] = []
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if own or module is model:
                hook = module.register_forward_pre_hook(self._before_forward)
                self._handles.append(hook)
            first = next((p for p in own if p.requires_grad), None)
            if first is not None:
                hook = first.register_post_accumulate_grad_hook(self._after_gradient)
                self._handles.append(hook)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def watch(self, visit: Callable[[], None]) -> Iterator[None]:
        """Call `visit` at every boundary; what it raises ends the pass."""
        self._visit = visit
        try:
            yield
        finally:
            self._visit = None

    def _before_forward(self, _module: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._visit is not None:
            self._visit()

    def _after_gradient(self, _parameter: Tensor) -> None:
        if self._visit is not None:
            self._visit()
