"""Plain values that a loss function can reach, kept so that they can be put back.

A pass that is only a rehearsal must leave no trace in the user's counters, lists and
running means. What is put back is what can be named: a variable of a closure or of a
module of Python, an attribute, an item of a list or dictionary, the values of a small
tensor or array, the members of a list, set, dictionary or queue, the state of a
generator of random numbers.
"""

from __future__ import annotations

import random
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.row import tensors

SMALL_BYTES = 1 << 20  # larger tensors are known by version and address only
_GENERATORS = (torch.Generator, random.Random, np.random.Generator)
_MEMBERS = 4096  # of a longer list, only what was added is taken away again


class Kept:
    """Values and where they were."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values: list[tuple[tuple[Any, Any], Any]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._members: list[tuple[Any, Any]] = []  # a container, and what it held
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[tuple[Any, Any]] = []  # of random numbers

    def note(
        self, value: Any, place: tuple[Any, Any] | None, *, copy: bool = True
    ) -> None:
        """Keep a value.

        Args:
            value: anything.
            place: what holds it, and by which key; None where nothing can be assigned.
            copy: whether a tensor's values are kept.
        """
        if place is not None:
            self._values.append((place, value))
        if isinstance(value, _GENERATORS):
            self._generators.append((value, _state(value)))
        elif isinstance(value, np.ndarray):
            if value.nbytes <= SMALL_BYTES and value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif isinstance(value, set):
            if len(value) <= _MEMBERS:
                self._members.append((value, set(value)))
        elif isinstance(value, Tensor):
            if copy and _can_be_copied(value):
                self._copies.append((value, value.detach().clone()))
        elif isinstance(value, (list, deque, dict)):
            few = len(value) <= _MEMBERS
            held = (dict if isinstance(value, dict) else list)(value) if few else None
            self._members.append((value, len(value) if held is None else held))

    def drawn(self) -> bool:
        """Returns whether a generator of the user's own has drawn numbers since."""
        return any(not _equal(_state(g), before) for g, before in self._generators)

    def rewind(self) -> None:
        """Put the generators back, so that each pass draws the same numbers."""
        for generator, state in self._generators:
            _set_state(generator, state)

    def put_back(self) -> None:
        """Put everything back that is no longer as it was."""
        self.rewind()
        for array, copy in self._arrays:
            array[...] = copy
        for container, held in self._members:
            _hold_again(container, held)
        for place, value in self._values:
            _assign_again(place, value)
        with torch.no_grad():
            for tensor, copy in self._copies:
                if not tensors.same_bits(tensor, copy):
                    tensor.copy_(copy)


def _can_be_copied(t: Tensor) -> bool:
    plain = t.layout is torch.strided and not t.is_meta and not t.is_inference()
    return plain and t.nbytes <= SMALL_BYTES


def _hold_again(container: Any, held: Any) -> None:
    if isinstance(held, int):  # it was long
        if isinstance(container, list):
            del container[held:]
        return
    if isinstance(container, set):
        container.clear()
        container.update(held)
        return
    if isinstance(container, dict):
        same = len(container) == len(held) and all(
            key in container and container[key] is value for key, value in held.items()
        )
        if not same:
            container.clear()
            container.update(held)
        return
    if len(container) == len(held) and all(map(_is, container, held)):
        return
    container.clear()
    container.extend(held)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else repr(a) == repr(b)


def _is(a: Any, b: Any) -> bool:
    return a is b


def _assign_again(place: tuple[Any, Any], value: Any) -> None:
    holder, key = place
    if isinstance(holder, types.CellType):
        try:
            same = holder.cell_contents is value
        except ValueError:  # it was deleted
            same = False
        if not same:
            holder.cell_contents = value
    elif isinstance(holder, dict):
        if holder.get(key, holder) is not value:
            holder[key] = value
    elif holder[key] is not value:
        holder[key] = value
