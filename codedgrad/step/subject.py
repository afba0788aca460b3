"""What a model consists of at this moment: modules, parameters, buffers, flags.

A `Subject` keeps lists of all of it, and tells cheaply, by identity, whether they still
hold. Nothing of a model is believed for longer than a step: users unfreeze, replace and
reassign, and each step sees the model as it is.
"""

from __future__ import annotations

import itertools
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.row import tensors
from codedgrad.row.tensors import Place, own_dict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

_numbers = itertools.count()
_OF_THIS_PROCESS = re.compile(r"0x[0-9a-fA-F]+|(?<=cuda):\d+")


class Subject:
    """The modules whose tensors belong to one payload.

    Attributes:
        model: the model that is trained.
        modules: all modules of it and of `also`, each once.
        parameters: all parameters, with their places; one that is tied has several.
        buffers: all buffers, with their places.
        learned: names of tensors that were seen to change in a pass; and
            `codedgrad.step.pieces.LOSS`, where the loss function wants whole shards.
        ignored: ids of the parameters that `_ddp_params_and_buffers_to_ignore` names.
        caches: names of non-persistent buffers that were seen to change their shape.
            They are left alone, as plain attributes are.
        inside: ids of the parameters whose gradients travel now.
        generation: counts how often the lists were made anew.
        number: tells subjects apart, in the order of their making.
    """

    def __init__(self, model: nn.Module, also: Sequence[nn.Module] = ()) -> None:
        """List what the model, and the modules in `also`, consist of."""
        if isinstance(also, nn.Module):
            also = [also]
        self.model = model
        self._roots = [("", model)]
        self._roots += [(f"also[{i}].", module) for i, module in enumerate(also)]
        for _, root in self._roots:
            if not isinstance(root, nn.Module):
                raise ConfigError(
                    f"the model and what is in also=[...] must be torch modules, got "
                    f"{type(root).__name__}"
                )
        self.learned: set[str] = set()
        self.caches: set[str] = set()
        self.inside: set[int] = set()
        self.number = next(_numbers)
        self.generation = 0
        self.refresh()

    @property
    def roots(self) -> list[nn.Module]:
        """The model, and the modules in `also`."""
        return [root for _, root in self._roots]

    @property
    def title(self) -> str:
        """What to call the model in a message."""
        return f"the {type(self.model).__name__}"

    # ---- the lists ----

    def refresh(self) -> None:
        """Makes the lists anew."""
        self.generation += 1
        self.modules: list[nn.Module] = []
        self.parameters: list[Place] = []
        self.buffers: list[Place] = []
        self._norms: set[str] = set()
        self.ignored: set[int] = set()  # ids of parameters that the user keeps local
        seen: set[int] = set()
        for prefix, root in self._roots:
            ignored = getattr(root, "_ddp_params_and_buffers_to_ignore", ())
            for path, module in root.named_modules(prefix=""):
                if id(module) not in seen:
                    seen.add(id(module))
                    self._add(module, prefix + path, set(ignored), path)
        self._dicts = [
            d for m in self.modules for d in (m._modules, m._parameters, m._buffers)
        ]
        self._contents = objects.values_of(self._dicts)
        held = (place.tensor() for place in self.parameters)
        self._tensors = [t for t in held if t is not None and not is_lazy(t)]
        self._requires = [t.requires_grad for t in self._tensors]
        self._marks = objects.Marks(self._tensors, versions=False, addresses=False)

    def _add(self, module: nn.Module, name: str, ignored: set[str], path: str) -> None:
        self.modules.append(module)
        stem = f"{name}." if name and not name.endswith(".") else name
        own = f"{path}." if path else ""
        local = module._non_persistent_buffers_set
        parameters, buffers = own_dict(module._parameters), own_dict(module._buffers)
        for key, p in parameters.items():
            if p is not None and own + key in ignored:
                self.ignored.add(id(p))
            elif p is not None:
                place = Place(stem + key, parameters, key, True, True)
                self.parameters.append(place)
        for key, b in buffers.items():
            if b is not None and own + key not in ignored:
                kept = key not in local
                place = Place(stem + key, buffers, key, False, kept)
                self.buffers.append(place)
                if isinstance(module, _NormBase):
                    self._norms.add(place.name)

    def same(self) -> bool:
        """Returns whether the lists still hold."""
        return (
            self.same_tensors()
            and objects.reads(self._tensors, "requires_grad", False, self._requires)
            and self._marks.same()
        )

    @property
    def contents(self) -> tuple[list[Any], list[Any]]:
        """All dictionaries of the modules, and what they held."""
        return self._dicts, self._contents

    def same_tensors(self) -> bool:
        """Returns whether all modules still hold the same modules and tensors."""
        return bool(objects.values_are(self._dicts, self._contents))

    # ---- what travels ----

    def trainable(self) -> list[tuple[str, Tensor]]:
        """Returns the parameters that require a gradient, each once."""
        found: dict[int, tuple[str, Tensor]] = {}
        for place in self.parameters:
            p = place.tensor()
            if p is not None and p.requires_grad:
                found.setdefault(id(p), (place.name, p))
        return list(found.values())

    def check(self) -> None:
        """Refuses models that are not complete yet.

        Raises:
            ConfigError: a tensor of a lazy module is not initialised.
        """
        for place in chain(self.parameters, self.buffers):
            t = place.tensor()
            if t is not None and is_lazy(t):
                raise ConfigError(
                    f"{place.name!r} is not initialised yet (its module is lazy); run "
                    f"one forward pass before CodedGradient is made, and then "
                    f"codedgrad.broadcast_parameters(model.state_dict())"
                )

    def travelling(self) -> list[list[Place]]:
        """Returns the places of each tensor whose changes travel.

        These are the buffers of norms with running statistics, and whatever was seen
        to change. A tensor that several modules share has several places.
        """
        found: dict[int, list[Place]] = {}
        for place in chain(self.buffers, self.parameters):
            t = place.tensor()
            wanted = place.name in self._norms or place.name in self.learned
            wanted = wanted and place.name not in self.caches
            if t is None or t.numel() == 0:
                continue
            if id(t) in found:
                found[id(t)].append(place)
            elif wanted:
                found[id(t)] = [place]
        return list(found.values())

    def key(self) -> list[Any]:
        """Returns what a laying out depends on; another key means another one."""
        key: list[Any] = [
            (name, id(p), p.dtype, p.shape, p.stride(), p.device)
            for name, p in self.trainable()
        ]
        for places in self.travelling():
            key.append((places[0].name, tensors.kind(places[0].tensor())))
        return key

    def kept(self, *, lasting: bool = False) -> list[tuple[str, Tensor]]:
        """Returns all tensors whose values all workers have in common, by name.

        Args:
            lasting: leave out buffers that are not persistent and do not travel. They
                may be caches, which evaluation between the steps fills on each worker
                in its own way.
        """
        own = self._norms | self.learned
        return [
            (place.name, t)
            for place in self.places()
            if place.name not in self.caches
            and (t := place.tensor()) is not None
            and (not lasting or place.persistent or place.name in own)
        ]

    def describe(self) -> list[tuple[str, str]]:
        """Returns each module's type and settings, which all workers have in common.

        These are what a module shows of itself: the probability of a dropout, the size
        of a kernel, which activation it is.
        """
        found = []
        for _, root in self._roots:
            for path, module in root.named_modules(prefix=""):
                name = f"module {path!r}" if path else "the model"
                found.append((name, f"{type(module).__name__}({_shown(module)})"))
        return found

    def modes(self) -> list[tuple[str, str]]:
        """Returns which modules are in training mode, by type."""
        return [
            (f"training mode of {type(m).__name__} {i}", str(m.training))
            for i, m in enumerate(self.modules)
        ]

    # ---- everything, for the watch ----

    def places(self) -> Iterator[Place]:
        """Yields every place of a tensor, but for those of one seen before."""
        seen: set[int] = set()
        for place in chain(self.parameters, self.buffers):
            t = place.tensor()
            if t is not None and id(t) not in seen:
                seen.add(id(t))
                yield place


def _shown(module: nn.Module) -> str:
    """Returns what a module shows of itself, but for addresses and device numbers."""
    try:
        text = module.extra_repr()
    except Exception:  # noqa: BLE001 (a module of the user's that cannot show itself)
        return ""
    return _OF_THIS_PROCESS.sub("", text)
