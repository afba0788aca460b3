"""Hooks on a module that only the module itself knows of.

A hook in `module._forward_pre_hooks` is part of the module for everybody who looks:
`copy.deepcopy` and `torch.optim.swa_utils.AveragedModel` copy it with all that it
refers to, `torch.save(model)` and `pickle` write it, and `torch.jit.script` tries to
compile it. Ours must do none of this, since a copy of the model is not exchanged.

Therefore a module that has our hooks gets a dictionary of hooks which shows them to
`Module.__call__` (it asks for `items()`), and hides them from TorchScript (it asks for
`values()`) and from everybody who copies or pickles the dictionary.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn
    from torch.utils.hooks import RemovableHandle


class _Hooks(OrderedDict[int, Any]):
    """Hooks of one module; see above."""

    def __init__(self, earlier: Mapping[int, Any]) -> None:
        """Takes over `earlier`, the module's hooks so far.

        Handles of the user's hooks refer to that dictionary and take their hooks out of
        it. So it stays, and what is no longer in it is not in this one either.
        """
        super().__init__(earlier)
        self._taken_over = frozenset(earlier)
        self._earlier = earlier
        self.own: set[int] = set()

    def _live(self) -> list[tuple[int, Any]]:
        gone = self._taken_over.difference(self._earlier)
        return [(i, h) for i, h in super().items() if i not in gone]

    def _others(self) -> list[tuple[int, Any]]:
        return [(i, h) for i, h in self._live() if i not in self.own]

    def items(self) -> Any:
        return self._live() if self._taken_over else super().items()

    def values(self) -> Any:
        return [h for _, h in self._others()]

    def copy(self) -> OrderedDict[int, Any]:  # type: ignore[override]
        return OrderedDict(self._others())

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> OrderedDict[int, Any]:
        return deepcopy(OrderedDict(self._others()), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return OrderedDict, (self._others(),)


def before_forward(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, args)` before every forward of `module`, but of no copy."""
    hooks = _ours(module, "_forward_pre_hooks")
    handle = module.register_forward_pre_hook(hook)
    hooks.own.add(handle.id)
    return handle


def after_forward(
    module: nn.Module, hook: Callable[..., Any], *, kwargs: bool = False
) -> RemovableHandle:
    """Calls `hook(module, args, output)` after every forward, but of no copy.

    With `kwargs` it is `hook(module, args, kwargs, output)`.
    """
    hooks = _ours(module, "_forward_hooks")
    handle = module.register_forward_hook(hook, with_kwargs=kwargs)
    hooks.own.add(handle.id)
    return handle


def _ours(module: nn.Module, name: str) -> _Hooks:
    hooks = getattr(module, name)
    if not isinstance(hooks, _Hooks):
        hooks = _Hooks(hooks)
        setattr(module, name, hooks)
    return hooks


def is_exported(module: nn.Module) -> bool:
    """Returns whether torch.export runs the module, with tensors without values."""
    first = next(module.parameters(), None)
    return isinstance(first, FakeTensor)


class Weakly:
    """Calls a method of an object for as long as the object lives."""

    def __init__(self, owner: object, method: Callable[..., Any]) -> None:
        """Takes the object and a function of its class."""
        self._owner, self._method = weakref.ref(owner), method

    def __call__(self, *args: Any) -> Any:
        """Returns `owner.method(*args)`, or None where there is no owner any more."""
        owner = self._owner()
        return None if owner is None else self._method(owner, *args)


def call_all(functions: list[Any]) -> None:
    """Call each of the functions, which take nothing."""
    for function in functions:
        function()
