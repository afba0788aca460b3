"""Module boundaries of a pass: where it can be slowed down, timed or abandoned.

Hooks before the forward of every module that has parameters of its own, and after the
gradient of the first of them, call the visitor while a pass of ours runs. Modules
without parameters have no hook, because a hook costs a module call microseconds.
Nothing else of the model is touched: gradients, the user's hooks and `state_dict` stay
as they are.

What torch.compile traces has no boundaries inside its forward, since each would break
the graph in two; the boundaries after gradients stay.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn


class Abandoned(BaseException):
    """The pass is not needed any more.

    It is a BaseException, so that an `except Exception` in a loss function lets it
    through.
    """


class Visitor(Protocol):
    """Hears of the module boundaries of a pass."""

    def visit(self) -> None:
        """Called at every boundary; what it raises ends the pass."""


class Boundaries:
    """The hooks on the modules of one model; they call nobody outside of `watch`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Attach the hooks; the first one of `modules` is the model."""
        self._visitor: Visitor | None = None
        self._handles: list[Any] = []
        for module in modules:
            own = list(module.parameters(recurse=False))
            if own or module is modules[0]:
                hook = module.register_forward_pre_hook(self._before_forward)
                self._handles.append(hook)
            first = next((p for p in own if p.requires_grad), None)
            if first is not None:
                hook = first.register_post_accumulate_grad_hook(self._after_gradient)
                self._handles.append(hook)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def watch(self, visitor: Visitor) -> Iterator[None]:
        """Inside, `visitor.visit` is called at every boundary."""
        self._visitor = visitor
        try:
            yield
        finally:
            self._visitor = None

    def _before_forward(self, _module: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._visitor is not None:
            self._visitor.visit()

    def _after_gradient(self, _parameter: Tensor) -> None:
        if self._visitor is not None:
            self._visitor.visit()
