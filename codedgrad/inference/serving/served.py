"""The model that answers queries, as one worker runs it; it stays as it is."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from codedgrad.data.seeding import own_rng, seed_pass
from codedgrad.errors import ConfigError
from codedgrad.inference.guard import Guard
from codedgrad.inference.serving.drawing import Generators
from codedgrad.inference.serving.query import versions_of
from codedgrad.inference.serving.weights import Weights
from codedgrad.inference.work import boundaries_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codedgrad.step.boundaries import Visitor

log = logging.getLogger("codedgrad")

# By module: how many predictors are open that use it, and its mode before the first.
_openings: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_FALSE_ALARMS = 8  # of draws that were another thread's, until they are not looked for
_SERVING = 0x5E12E  # tells the random numbers of queries from a training's


class Served:
    """A model in eval mode, whose passes can be left between two of its modules.

    Attributes:
        draws: whether it draws random numbers; None: not known yet. If so, those of a
            query follow from its owner and its number. It stays True once it is.
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
        self._weights = Weights(model)
        self._false_alarms = 0
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

    def here(self, value: Any, host: list[bool] | None = None) -> Any:
        """Return a value of another worker with its tensors on the model's device.

        Args:
            value: it.
            host: which of its tensors stay on the host; None: none.
        """
        return moved(value, self._device, None if host is None else iter(host))

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
        begin = time.monotonic()
        if draws is False and self.draws is not True:
            value = self._unseeded(inputs, visitor, number)
        else:
            value, _ = self._seeded(inputs, visitor, number)
        self._weights.passed(time.monotonic() - begin)
        self._check()
        return value

    def _seeded(
        self, inputs: tuple[Any, ...], visitor: Visitor, number: tuple[int, int]
    ) -> tuple[Any, bool]:
        """Return the output, and whether numbers were drawn for it."""
        with own_rng():
            seed_pass(_SERVING, *number)
            start = Generators()
            value = self._pass(inputs, visitor)
            drew = start.moved()
        self.draws = drew or bool(self.draws)
        return value, drew

    def _unseeded(
        self, inputs: tuple[Any, ...], visitor: Visitor, number: tuple[int, int]
    ) -> Any:
        """Return the output of a model that has not drawn any numbers yet.

        If some are drawn now, by it or by another thread, it is computed again.
        """
        if self._false_alarms >= _FALSE_ALARMS:
            return self._pass(inputs, visitor)
        before, versions = Generators(), versions_of(inputs)
        value = self._pass(inputs, visitor)
        if not before.moved():
            return value
        if versions_of(inputs) != versions:
            self.draws = True  # the next ones are seeded
            raise ConfigError(
                "the model wrote into its inputs while random numbers were drawn, so "
                "this query cannot be computed again with its own numbers; ask it anew"
            )
        again, drew = self._seeded(inputs, visitor, number)
        if drew:
            before.put_back()
            return again
        self._false_alarms += 1
        if self._false_alarms == _FALSE_ALARMS:
            log.warning(
                "another thread draws random numbers while the predictor computes, so "
                "whether the model draws some is not looked for any more; if it does "
                "for some inputs only, answers depend on who computes them"
            )
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
        what = ", ".join(map(repr, changed[:4])) or self._weights.changed()
        if what:
            raise ConfigError(
                f"{what} of the model changed while a "
                f"predictor answers with it; its forward must leave it as it is, and "
                f"before it is trained the predictor must be closed"
            )


def moved(value: Any, device: torch.device, host: Iterator[bool] | None = None) -> Any:
    """Return a value whose tensors are on a device, nested ones, too.

    Args:
        value: it.
        device: where they are to be.
        host: whether each stays where it is, in the order of `query.tensors_of`.
    """
    if isinstance(value, Tensor):
        stays = host is not None and next(host, False)
        return value if stays else value.to(device)
    if isinstance(value, dict):
        return type(value)((k, moved(v, device, host)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(moved(v, device, host) for v in value)
    return value
