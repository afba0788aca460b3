"""Notices when a backward pass begins, when it has ended, and that it never will.

The drop-in does not call `backward()`, the user does. Hooks on the parameters hear of
the first gradient, and a callback of the autograd engine of the end. A pass that ends
with an exception has no end: the callback never comes. This is noticed as soon as
something happens while no backward runs, or while another one runs.

A backward inside of a backward (reentrant checkpointing) belongs to the outer one. Its
gradients cannot be told from those of the outer one, but by what is on the stack. Where
it has the first gradient of the pass, the outer one is not known yet: we meet it where
it goes on, at the nodes that follow on the one which ran the inner backward.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd.graph import _engine_run_backward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from torch import Tensor

_NONE = -1  # the number of the graph that runs while no backward does
_UNKNOWN = -2  # stands for the number of an outer graph
_RUNS = _engine_run_backward.__code__


class BackwardListener(Protocol):
    """Hears of the backward passes over a model."""

    def backward_begins(self, first: Tensor) -> None:
        """Called with the parameter that gets the first gradient of a pass."""

    def backward_ended(self) -> None:
        """Called when all gradients of a pass have come, inside of its `backward()`."""

    def backward_failed(self) -> None:
        """Called some time after a pass that began has ended with an exception."""


class Backwards:
    """The backward passes that reach some parameters; the listener is held weakly."""

    def __init__(
        self, parameters: Iterable[Tensor], listener: BackwardListener
    ) -> None:
        """Attaches the hooks."""
        self._listener = weakref.ref(listener)
        self._pass: int | None = None  # the number of its graph
        self._inner: int | None = None  # the graph of a backward inside of it
        self._nodes: list[Any] = []  # hooks where an unknown outer backward goes on
        self._handles = [
            p.register_post_accumulate_grad_hook(self._gradient_came)
            for p in parameters
        ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def under_way(self) -> bool:
        """Whether a pass has begun and has neither ended nor failed."""
        return self._pass is not None

    def look(self) -> None:
        """Notices a pass that has failed. Called when something else happens."""
        if self._pass is not None and not inside_backward():
            self._forget_failed()

    def _gradient_came(self, parameter: Tensor) -> None:
        graph = torch._C._current_graph_task_id()
        if graph == self._pass or graph == self._inner:
            return
        listener = self._listener()
        if listener is None:
            return
        if _is_nested():
            self._inner = graph
            if self._pass is None:
                self._pass = _UNKNOWN
                _at_end(self._inner_ended)
                listener.backward_begins(parameter)
        elif self._pass == _UNKNOWN:
            self._outer_goes_on()
        else:
            if self._pass is not None:
                self._forget_failed()
            self._pass = graph
            _at_end(self._ended)
            listener.backward_begins(parameter)

    def _inner_ended(self) -> None:
        node: Any = torch._C._current_autograd_node()
        following = [] if node is None else [f for f, _ in node.next_functions if f]
        for f in following:
            self._nodes.append(f.register_prehook(self._outer_goes_on))

    def _outer_goes_on(self, *_: Any) -> None:
        for handle in self._nodes:
            handle.remove()
        self._nodes = []
        if self._pass != _UNKNOWN:
            return
        if _is_nested():  # the outer backward is itself inside of another
            _at_end(self._inner_ended)
            return
        self._pass = torch._C._current_graph_task_id()
        _at_end(self._ended)

    def _ended(self) -> None:
        self._pass = self._inner = None
        listener = self._listener()
        if listener is not None:
            listener.backward_ended()

    def _forget_failed(self) -> None:
        self._pass = self._inner = None
        listener = self._listener()
        if listener is not None:
            listener.backward_failed()


def _at_end(callback: Callable[[], None]) -> None:
    """Calls `callback` when the backward that runs now has ended without an error."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)


def inside_backward() -> bool:
    """Returns whether a backward of this thread is running."""
    return bool(torch._C._current_graph_task_id() != _NONE)


def _is_nested() -> bool:
    """Returns whether the backward that called our hook runs inside of another one.

    The hook of a backward has the call that runs it on its stack. Only on a thread of
    the autograd engine, which works for a device, there is none.
    """
    frame: FrameType | None = sys._getframe(1)
    runs = 0
    while frame is not None:
        runs += frame.f_code is _RUNS
        frame = frame.f_back
    engines = isinstance(threading.current_thread(), threading._DummyThread)
    return runs > (0 if engines else 1)
