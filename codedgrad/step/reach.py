"""What a loss function can reach that is neither a parameter nor a buffer.

A loss function may keep state in places of which a row knows nothing: an attribute of a
module, a list in its closure, a global counter, the object whose method it is, another
model whose tensors it uses without calling it. Python cannot tell what it reads, but
what it can reach by names is soon listed: closures, defaults, globals that its code
names, attributes, and the same of functions and objects found there, three levels deep.
"""

from __future__ import annotations

import dis
import functools
import re
import sys
import types
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from codedgrad.row import tensors
from codedgrad.row.digest import array_digest
from codedgrad.step.keep import SMALL_BYTES, Kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DEPTH = 3
_ITEMS = 32  # of a list or dictionary; longer ones are data, not state
_MOST = 4096  # values of the loss function, and again of the modules
# What objects of these hold is no state of a loss function (queues, locks, files).
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "codedgrad"}
_LIBRARIES -= {"argparse", "types", "dataclasses"}
_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")
_STORE = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR")
# Private attributes that a module of the user's has from torch: state, hooks, and the
# parameters of a recurrent layer, which are elsewhere, too.
_TORCHS = {*vars(nn.Module()), *vars(nn.LSTM(1, 1)), "_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Reached:
    """What was found, and how it was then.

    Attributes:
        modules: the modules that were found, but for those that are known.
        chosen: names of attributes of objects that are called, a criterion's, say, but
            for those that their calls assign.
        long: lists and tuples by name that are too long to be looked into.
    """

    def __init__(
        self,
        loss_fn: Any,
        modules: Iterable[nn.Module],
        *,
        keep: bool = False,
        private: bool = False,
    ) -> None:
        """Look at a loss function, and at the plain attributes of known modules.

        With `keep`, what is found can be put back. With `private`, private attributes
        of the user's modules are looked at, too: caches in them are no mistake, so
        they are not named after every pass.
        """
        modules = list(modules)
        self._kept = Kept() if keep else None
        self._private = private
        self._known = {id(m) for m in modules}
        # Parameters are put back elsewhere, and not in the middle of a rehearsal.
        own = [p for m in modules for p in m._parameters.values()] if keep else []
        self._parameters = {id(p) for p in own}
        self._seen: set[int] = set()
        self._values: dict[str, tuple[Any, Any]] = {}  # the value, and its mark
        self.modules: list[nn.Module] = []
        self._holders: dict[str, Any] = {}  # by names that are taken
        self.chosen: set[str] = set()
        self.long: dict[str, list[Any] | tuple[Any, ...]] = {}
        self._assigned: set[str] = set()  # variables and attributes, by their codes
        self._most = _MOST
        self._note("", loss_fn, 0)
        if not isinstance(loss_fn, functools.partial):  # that was looked into
            self._function("", loss_fn, 0)
        if _is_the_users(type(loss_fn)):  # an object that is called
            self._function("", vars(type(loss_fn)).get("__call__"), 0)
        self._most = len(self._values) + _MOST  # those of a large model are many
        for module in modules:
            self._of_module(module)

    def changed(self, since: Reached) -> list[str]:
        """Return the names of what is no longer as it was."""
        return [
            name
            for name, (_, mark) in self._values.items()
            if name in since._values and since._values[name][1] != mark
        ]

    def plain(self) -> Iterator[tuple[str, Any]]:
        """Yields names and values, but for the lengths of containers."""
        for name, (value, _) in self._values.items():
            if not name.startswith("the length of "):
                yield name, value

    @property
    def stored(self) -> set[str]:
        """Names of values that the code of a function which was found assigns."""
        return {n for n in self._values if not self._assigned.isdisjoint(_words(n))}

    def drawn(self) -> bool:
        """Returns whether a generator that was found has drawn numbers since."""
        return self._kept is not None and self._kept.drawn()

    def rewind(self) -> None:
        """Put generators of random numbers back, if they are kept."""
        if self._kept is not None:
            self._kept.rewind()

    def put_back(self) -> None:
        """Put back what was found, as far as it was kept."""
        if self._kept is not None:
            self._kept.put_back()

    def _of_module(self, module: nn.Module) -> None:
        kind, holder = type(module).__name__, vars(module)
        private = self._private and _is_the_users(type(module))
        for key, value in list(holder.items()):
            hidden = key.startswith("_") and (not private or key in _TORCHS)
            if not hidden and key != "training":
                self._note(f"{key!r} of a {kind}", value, _DEPTH - 1, (holder, key))
        for hooks in _HOOKS:
            for hook in list(module.__dict__.get(hooks, {}).values()):
                self._function("", hook, 1)

    def _function(self, name: str, function: Any, depth: int) -> None:
        """Look into a function, a bound method or a partial."""
        if isinstance(function, functools.partial):
            prefix = f"{name} " if name else ""
            for i, value in enumerate(function.args):
                self._note(f"{prefix}argument {i}", value, depth + 1)
            for key, value in function.keywords.items():
                self._note(f"{prefix}{key}", value, depth + 1)
            self._function(name, function.func, depth)
            return
        if isinstance(function, types.MethodType):
            self._note("self", function.__self__, depth)
            function = function.__func__
        if not isinstance(function, types.FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        code = function.__code__
        self._assigned |= _stored_by(code)
        for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._note(key, cell.cell_contents, depth + 1, (cell, None))
            except ValueError:  # not assigned yet
                continue
        defaults = function.__defaults__ or ()
        named = code.co_varnames[: code.co_argcount][-len(defaults) :]
        more = function.__kwdefaults__ or {}
        for key, value in (*zip(named, defaults, strict=False), *more.items()):
            self._note(key, value, depth + 1)
        for key in _globals_of(code):
            if key in function.__globals__:
                place = function.__globals__, key
                self._note(key, function.__globals__[key], depth + 1, place)

    def _note(
        self, name: str, value: Any, depth: int, place: tuple[Any, Any] | None = None
    ) -> None:
        if depth > _DEPTH or len(self._values) >= self._most:
            return
        if self._kept is not None:
            self._kept.note(value, place, copy=id(value) not in self._parameters)
        name = self._own_name(name, place)
        if value is None or isinstance(value, int | float | complex | str | np.number):
            self._values[name] = value, value
        elif isinstance(value, np.ndarray):
            if value.nbytes <= SMALL_BYTES and not value.dtype.hasobject:
                self._values[name] = value, array_digest(value)
        elif isinstance(value, Tensor):
            self._values[name] = value, _mark(value)
        elif isinstance(value, nn.Module):
            if id(value) not in self._known:
                self._known.update(id(m) for m in value.modules())
                self.modules += value.modules()
                for module in value.modules():
                    if _is_the_users(type(module)):  # a criterion, say
                        self._of_module(module)
                        kind = type(module)
                        keys = _chosen(kind, vars(module))
                        self.chosen.update(f"{k!r} of a {kind.__name__}" for k in keys)
        elif isinstance(value, type) or id(value) in self._seen:
            return
        elif isinstance(value, list | tuple | deque | dict):
            self._seen.add(id(value))
            self._values[f"the length of {name}"] = value, len(value)
            if len(value) > _ITEMS and isinstance(value, list | tuple):
                self.long[name] = value
            for key, item in _items(value):
                at = None if isinstance(value, tuple) else (value, key)
                self._note(f"{name}[{key!r}]", item, depth + 1, at)
        elif isinstance(
            value, types.FunctionType | types.MethodType | functools.partial
        ):
            if isinstance(value, functools.partial) or _is_the_users(value):
                self._function(name, value, depth)
        elif hasattr(value, "__dict__") and _is_the_users(type(value)):
            self._seen.add(id(value))
            holder = vars(value)
            chosen = _chosen(type(value), holder)
            self.chosen.update(f"{name}.{key}" for key in chosen)
            for key, item in list(holder.items()):
                self._note(f"{name}.{key}", item, depth + 1, (holder, key))

    def _own_name(self, name: str, place: tuple[Any, Any] | None) -> str:
        """Returns the name, with a number where something else has it already."""
        token = None if place is None else (id(place[0]), place[1])
        first, number = name, 1
        while name in self._holders and (token is None or self._holders[name] != token):
            number += 1
            name = f"{first} ({number})"
        self._holders[name] = token
        return name


@functools.lru_cache(256)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """Returns the global variables that a code uses; `co_names` has attributes, too."""
    used = (i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL)
    return tuple(dict.fromkeys(used))


@functools.lru_cache(256)
def _stored_by(code: types.CodeType) -> frozenset[str]:
    """Returns the variables and attributes that a code, and those in it, assign."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in _STORE}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(found.union(*map(_stored_by, inner)))


def _chosen(kind: type, keys: Iterable[str]) -> list[str]:
    """Returns the attributes of an object that is called which no call assigns."""
    call = getattr(kind, "forward" if issubclass(kind, nn.Module) else "__call__", None)
    code = getattr(call, "__code__", None)
    return [] if code is None else [k for k in keys if k not in _stored_by(code)]


def _words(name: str) -> list[str]:
    """Returns the variables and attributes in the name of a value."""
    return re.findall(r"[^\W\d]\w*", name.split(" of a ")[0])


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if len(value) <= _ITEMS:
        yield from list(value.items() if isinstance(value, dict) else enumerate(value))


def _is_the_users(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or ""
    return module.split(".", maxsplit=1)[0] not in _LIBRARIES


def _mark(t: Tensor) -> Any:
    kind = tensors.kind(t)
    if t.is_meta or t.nbytes > SMALL_BYTES or t.device.type != "cpu":
        version = 0 if t.is_inference() else t._version
        return kind, version, t.data_ptr() if t.layout is torch.strided else id(t)
    return kind, tensors.digest(t)
