"""The model that answers queries, as one worker runs it; it stays as it is."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from numpy.random import mtrand
from torch import Tensor, nn

from codedgrad.data.seeding import own_rng, seed_pass
from codedgrad.errors import ConfigError
from codedgrad.inference.guard import Guard
from codedgrad.inference.work import boundaries_of

if TYPE_CHECKING:
    from codedgrad.step.boundaries import Visitor

# By module: how many predictors are open that use it, and its mode before the first.
_openings: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_SERVING = 0x5E12E  # tells the random numbers of queries from a training's


class Served:
    """A model in eval mode, whose passes can be left between two of its modules.

    Attributes:
        draws: whether it draws random numbers; None: not known yet. If so, those of a
            query follow from its owner and its number.
    """

    def __init__(self, model: nn.Module, *others: Any) -> None:
        """Put the model, and others that are modules, into eval mode; add the hooks."""
        self._model = model
        roots = [model, *(one for one in others if isinstance(one, nn.Module))]
        self._modules = list(dict.fromkeys(m for one in roots for m in one.modules()))
        for module in self._modules:
            count, mode = _openings.get(module, (0, module.training))
            _openings[module] = count + 1, mode
        for one in roots:
            one.eval()
        self._closed = False
        self._guard = Guard([model])
        self._open = ExitStack()
        self._boundaries = self._open.enter_context(boundaries_of([model]))
        first = next(model.parameters(), None)
        self._device = torch.device("cpu") if first is None else first.device
        self.draws: bool | None = None

    def restore(self) -> None:
        """Take the hooks off, and put the modes back."""
        if self._closed:
            return
        self._closed = True
        self._open.close()
        for module in self._modules:
            count, mode = _openings.pop(module)
            if count > 1:
                _openings[module] = count - 1, mode
            else:
                module.training = mode

    def here(self, value: Any) -> Any:
        """Return a value of another worker with its tensors on the model's device."""
        return moved(value, self._device)

    def compute(
        self,
        inputs: tuple[Any, ...],
        visitor: Visitor,
        number: tuple[int, int],
        draws: bool | None,
    ) -> Any:
        """Return the model's output.

        Args:
            inputs: what it is called with.
            visitor: is called between the modules; what it raises ends the pass.
            number: owner and number of the query.
            draws: whether the model draws random numbers; None: not known.

        Raises:
            ConfigError: the model is not as it was, before or after the pass.
        """
        if any(module.training for module in self._modules):
            raise ConfigError(
                "the model is in training mode, although a predictor answers with it; "
                "close the predictor before you train it"
            )
        self._check()
        if draws is False:
            value = self._pass(inputs, visitor)
        else:
            with own_rng():
                seed_pass(_SERVING, *number)
                start = _generators()
                value = self._pass(inputs, visitor)
                self.draws = _generators() != start
        self._check()
        return value

    def _pass(self, inputs: tuple[Any, ...], visitor: Visitor) -> Any:
        with torch.no_grad(), self._boundaries.watch(visitor):
            value = self._model(*inputs)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            visitor.visit()
        return value

    def _check(self) -> None:
        changed = self._guard.changed()
        if changed:
            raise ConfigError(
                f"{', '.join(map(repr, changed[:4]))} of the model changed while a "
                f"predictor answers with it; its forward must leave it as it is, and "
                f"before it is trained the predictor must be closed"
            )


def _generators() -> tuple[Any, ...]:
    numpy_state = mtrand.get_bit_generator().state["state"]
    host = torch.default_generator.get_state().numpy().tobytes()
    return host, numpy_state["key"].tobytes(), numpy_state["pos"], random.getstate()


def moved(value: Any, device: torch.device) -> Any:
    """Return a value whose tensors are on a device, nested ones, too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)((k, moved(v, device)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(moved(v, device) for v in value)
    return value
