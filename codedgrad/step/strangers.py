"""Modules that the loss function calls and that belong to no model we know.

They are met by a hook on all modules, which is there only while a pass is compared by
values. From the next step on they are watched like the models that we know.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from codedgrad.errors import ConfigError
from codedgrad.ops.objects import mark_of
from codedgrad.row import tensors
from codedgrad.row.tensors import Place
from codedgrad.step.witness import FOREIGN, Entry

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import nn

# They exchange gradients by themselves.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


class Strangers:
    """The strangers met so far; no module is kept alive for it."""

    def __init__(self) -> None:
        """Begin without any."""
        self._met: dict[int, weakref.ref[nn.Module]] = {}
        self._entries: dict[int, list[Entry]] = {}  # by the module's id
        self._new: set[int] = set()  # met in this step
        self._known: Container[int] = ()
        self._handle: Any = None

    def listen(self, known: Container[int]) -> None:
        """Note from now on all modules that are called and whose ids are not known."""
        self._known = known
        # A compiled module warns of hooks on all modules, which ours leave as it is.
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
        self._handle = register_module_forward_pre_hook(self._before_forward)

    def stop(self) -> None:
        """Listen no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self._quiet.__exit__(None, None, None)

    def _before_forward(self, module: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling() or id(module) in self._known:
            return
        if type(module).__name__ in WRAPPERS:
            raise ConfigError(
                f"the loss function calls a {type(module).__name__}, which exchanges "
                f"gradients by itself, once in every pass of this worker alone: call "
                f"the model inside it (.module), or leave the wrapper out"
            )
        met = self._met.get(id(module))
        if met is not None and met() is module:
            return
        self._met[id(module)] = weakref.ref(module)
        self._entries[id(module)] = entries_of(module)
        self._new.add(id(module))

    def changed(self) -> bool:
        """Forgets modules that are gone; returns whether there are others than before.

        The answer holds for the time since the call before.
        """
        gone = [key for key, met in self._met.items() if met() is None]
        for key in gone:
            del self._met[key], self._entries[key]
        news = bool(gone) or bool(self._new)
        self._new = set()
        return news

    @property
    def met(self) -> bool:
        """Whether there are any."""
        return bool(self._met)

    def modules(self) -> list[nn.Module]:
        """Returns those that are still there."""
        return [m for met in self._met.values() if (m := met()) is not None]

    def entries(self) -> list[Entry]:
        """Returns the tensors of all of them."""
        return [e for entries in self._entries.values() for e in entries]

    def changed_entries(self) -> list[Entry]:
        """Returns tensors that have changed since their module was met in this step."""
        found: list[Entry] = []
        for key in self._new:
            if self._met[key]() is None:  # the pass has made it for itself
                continue
            found += filter(has_changed, self._entries[key])
        return found


def has_changed(entry: Entry) -> bool:
    """Returns whether a tensor is not as it was when the entry was made."""
    t = entry.place.tensor()
    if t is not entry.tensor or tensors.kind(t) != entry.kind:
        return True
    if entry.digest is None:
        return mark_of(t) != entry.mark
    return tensors.digest(t) != entry.digest


def entries_of(module: nn.Module) -> list[Entry]:
    """Returns the tensors of a module alone, as they are now."""
    found = []
    for parameter, holder in ((True, module._parameters), (False, module._buffers)):
        for key, t in tensors.own_dict(holder).items():
            if t is None or torch.nn.parameter.is_lazy(t):
                continue
            title = f"{key!r} of a {type(module).__name__}"
            own = tensors.own_dict(holder)
            place = Place(key, own, key, parameter, True)
            entry = Entry(place, t, FOREIGN, title)
            entry.note(mark_of(t), digest=True)
            found.append(entry)
    return found


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that another library has wrapped.

    Raises:
        ConfigError: that library exchanges its gradients already.
    """
    if type(model).__name__ in WRAPPERS:
        raise ConfigError(
            f"the model is a {type(model).__name__}, which exchanges gradients by "
            f"itself; give the model inside it (model.module), or leave the wrapper out"
        )


def refuse_wrapped_parameters(named: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Refuse parameters of a model that another library has wrapped.

    Who gives parameters and no model may have given those of a wrapper. All objects are
    looked at for that, but only where torch.distributed has several processes.

    Raises:
        ConfigError: that library exchanges their gradients already.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() < 2 or _wrapper_of(named) is None:
        return
    gc.collect()  # a wrapper that nobody uses may be part of a cycle
    if (found := _wrapper_of(named)) is not None:
        name, kind = found
        raise ConfigError(
            f"the gradient of {name!r} is exchanged already, by a {kind}; use one of "
            f"the two: give the parameters of the model inside it (model.module), and "
            f"leave the wrapper out, or keep it and call codedgrad.ddp.register(model)"
        )


def _wrapper_of(named: Sequence[tuple[str, torch.Tensor]]) -> tuple[str, str] | None:
    """Returns a parameter's name and the kind of the wrapper that has it, if any."""
    names = {id(p): name for name, p in named}
    for thing in gc.get_objects():
        kind = type(thing)
        if kind.__name__ in WRAPPERS and issubclass(kind, torch.nn.Module):
            for p in thing.parameters():
                if p.requires_grad and id(p) in names:
                    return names[id(p)], kind.__name__
    return None
