"""Looks whether a model still has the weights that it was served with.

The versions of tensors tell what changed them in place (`codedgrad.inference.guard`).
Here are the changes that have no version: another tensor or module in the place of one,
seen at every pass, and values written past torch (`p.data`), seen now and then.
"""

from __future__ import annotations

import operator
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from codedgrad.inference.compare import weights_of

if TYPE_CHECKING:
    from torch import nn

_EVERY = 256  # passes between two looks at the values, after the first ones
_SHARE = 0.01  # of the passes' time, that looks may take


class Weights:
    """The parameters, buffers and modules of a model, and a digest of their values.

    A buffer that is not saved may be a cache, so it is not looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        """Note them."""
        self._model = model
        self._dicts: list[Any] = []
        self._single: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            self._dicts += [module._modules, module._parameters]
            if not module._non_persistent_buffers_set:
                self._dicts.append(module._buffers)
                continue
            for name, buffer in module._buffers.items():
                if name not in module._non_persistent_buffers_set:
                    self._single.append((module._buffers, name, buffer))
        self._held = _values(self._dicts)
        begin = time.monotonic()
        self._digest = weights_of([model])
        self._look_s = time.monotonic() - begin
        self._passes, self._passes_s, self._looks_s = 0, 0.0, 0.0
        self._changed = ""

    def changed(self) -> str:
        """Return what has changed, as far as it is known; "" if nothing."""
        if self._changed:
            return self._changed
        if not self._same_objects():
            return "a parameter, buffer or module was replaced, added or removed"
        return ""

    def passed(self, seconds: float) -> None:
        """Count a pass, and look at the values if it is time to."""
        self._passes += 1
        self._passes_s += seconds
        early = self._passes & (self._passes - 1) == 0  # a power of two
        if not early:
            spent = self._looks_s + self._look_s
            if self._passes % _EVERY or spent > _SHARE * self._passes_s:
                return
        begin = time.monotonic()
        if weights_of([self._model]) != self._digest:
            self._changed = "values were written past torch, as by p.data"
        self._look_s = time.monotonic() - begin
        self._looks_s += self._look_s

    def _same_objects(self) -> bool:
        now = _values(self._dicts)
        if len(now) != len(self._held) or not all(map(operator.is_, now, self._held)):
            return False
        return all(held.get(name) is one for held, name, one in self._single)


def _values(dicts: list[Any]) -> list[Any]:
    return list(chain.from_iterable([one.values() for one in dicts]))
