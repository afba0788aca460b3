"""Plain values that a loss function can reach, kept so that they can be put back.

A pass that is only a rehearsal must leave no trace in the user's counters, lists and
running means. What is put back is what can be named: a variable of a closure or of a
module of Python, an attribute, an item of a list or dictionary, the values of a small
tensor, the members of a list, dictionary or queue.
"""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import torch
from torch import Tensor

from codedgrad.row import tensors

SMALL_BYTES = 1 << 20  # larger tensors are known by version and address only
_MEMBERS = 4096  # of a longer list, only what was added is taken away again


class Kept:
    """Values and where they were."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values: list[tuple[tuple[Any, Any], Any]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._members: list[tuple[Any, Any]] = []  # a container, and what it held

    def note(self, value: Any, place: tuple[Any, Any] | None) -> None:
        """Keep a value.

        Args:
            value: anything.
            place: what holds it, and by which key; None where nothing can be assigned.
        """
        if place is not None:
            self._values.append((place, value))
        if isinstance(value, Tensor):
            if _can_be_copied(value):
                self._copies.append((value, value.detach().clone()))
        elif isinstance(value, (list, deque, dict)):
            few = len(value) <= _MEMBERS
            held = (dict if isinstance(value, dict) else list)(value) if few else None
            self._members.append((value, len(value) if held is None else held))

    def put_back(self) -> None:
        """Put everything back that is no longer as it was."""
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
    return plain and t.device.type == "cpu" and t.nbytes <= SMALL_BYTES


def _hold_again(container: Any, held: Any) -> None:
    if isinstance(held, int):  # it was long
        if isinstance(container, list):
            del container[held:]
        return
    if isinstance(container, dict):
        same = list(container) == list(held)
        if not same:
            container.clear()
            container.update(held)
        return
    if len(container) == len(held) and all(map(_is, container, held)):
        return
    container.clear()
    container.extend(held)


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
