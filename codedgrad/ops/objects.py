"""Hundreds of tensors and modules looked at, or changed, in one call.

A step looks at every tensor of a model several times, and a loop of Python takes tens
of nanoseconds for each attribute that it reads. These functions are such loops in C++
(csrc/bindings/objects.cpp, tensors.cpp). Beside each stands the loop in Python, which
is the reference for the tests and is used where the compiled module is missing.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_Function = TypeVar("_Function")

try:
    from codedgrad.ops import _ops
except ImportError:
    _ops = None  # type: ignore[assignment]


# ---- references ----


def values_of_reference(dictionaries: list[Any]) -> list[Any]:
    """Returns the values of all dictionaries, one after the other."""
    return list(chain.from_iterable([d.values() for d in dictionaries]))


def values_are_reference(dictionaries: list[Any], values: list[Any]) -> bool:
    """Returns whether `values_of` would return the very same objects."""
    now = values_of_reference(dictionaries)
    return len(now) == len(values) and all(map(_is, now, values))


def items_are_reference(
    dictionaries: list[dict[Any, Any]], keys: list[Any], values: list[Any]
) -> bool:
    """Returns whether each dictionary has the very object at its key."""
    found = [d.get(key, _NOTHING) for d, key in zip(dictionaries, keys, strict=True)]
    return all(map(_is, found, values))


def read_reference(objects: list[Any], name: str, call: bool) -> list[Any]:
    """Returns an attribute of each object, or what it returns with `call`."""
    found = [getattr(one, name) for one in objects]
    return [method() for method in found] if call else found


def reads_reference(
    objects: list[Any], name: str, call: bool, values: list[Any]
) -> bool:
    """Returns whether `read` would return equal values."""
    return read_reference(objects, name, call) == values


def all_none_reference(objects: list[Any], name: str) -> bool:
    """Returns whether an attribute of each object is None."""
    return all(getattr(one, name) is None for one in objects)


def filled_reference(objects: list[Any], name: str) -> list[bool]:
    """Returns for each object whether an attribute is not None."""
    return [getattr(one, name) is not None for one in objects]


def assign_reference(objects: list[Any], name: str, values: list[Any]) -> None:
    """Sets an attribute of each object to its value."""
    for one, value in zip(objects, values, strict=True):
        setattr(one, name, value)


def assign_all_reference(objects: list[Any], name: str, value: Any) -> None:
    """Sets an attribute of all objects to one value."""
    for one in objects:
        setattr(one, name, value)


_NOTHING = object()


def _is(a: Any, b: Any) -> bool:
    return a is b


def _fastest(name: str, reference: _Function) -> _Function:
    fast: _Function = getattr(_ops, name, reference)
    return fast


values_of = _fastest("values_of", values_of_reference)
values_are = _fastest("values_are", values_are_reference)
items_are = _fastest("items_are", items_are_reference)
read = _fastest("read", read_reference)
reads = _fastest("reads", reads_reference)
all_none = _fastest("all_none", all_none_reference)
filled = _fastest("filled", filled_reference)
assign = _fastest("assign", assign_reference)
assign_all = _fastest("assign_all", assign_all_reference)


# ---- tensors ----


def exchange_offered() -> bool:
    """Returns whether this torch describes its tensors to C (DLPack's exchange)."""
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return _ops is not None and table is not None and _ops.use_exchange(table)


EXCHANGE = exchange_offered()


class TensorMarksReference:
    """What dense tensors show, column by column; see `_ops.TensorMarks`."""

    def __init__(self, versions: bool, addresses: bool) -> None:
        """Look at versions and addresses, too, if they are wanted."""
        self._wanted = versions, addresses
        self._noted: list[list[Any]] = []

    def note(self, tensors: list[Tensor]) -> bool:
        """Notes the state of all; returns that they can be described."""
        self._noted = self._columns(tensors)
        return True

    def note_one(self, index: int, tensor: Tensor) -> bool:
        """Notes the state of one of them anew."""
        for column, (now,) in zip(self._noted, self._columns([tensor]), strict=True):
            column[index] = now
        return True

    def same(self, tensors: list[Tensor]) -> bool:
        """Returns whether all are as they were noted."""
        return self._columns(tensors) == self._noted

    def noted(self) -> list[tuple[int, int, int]]:
        """Returns version, address, and a hash of the rest, as they were noted."""
        rows = zip(*self._noted, strict=True)
        return [(v, address, hash(tuple(rest))) for v, address, *rest in rows]

    def _columns(self, tensors: list[Tensor]) -> list[list[Any]]:
        versions, addresses = self._wanted
        none = [0] * len(tensors)
        return [
            read(tensors, "_version", False) if versions else none,
            read(tensors, "data_ptr", True) if addresses else none,
            read(tensors, "dtype", False),
            read(tensors, "device", False),
            read(tensors, "shape", False),
            read(tensors, "stride", True),
        ]


class Marks:
    """What tensors show at one moment, to be compared with later.

    Shape, type, strides and device always belong to it. Tensors that cannot be
    described to C (sparse ones, subclasses, inference tensors) are looked at in Python.
    """

    def __init__(
        self, tensors: list[Tensor], *, versions: bool, addresses: bool
    ) -> None:
        """Note the state of the tensors, with versions and addresses if wanted."""
        self._tensors = tensors
        self._versions, self._addresses = versions, addresses
        kind: Any = _ops.TensorMarks if EXCHANGE else TensorMarksReference
        self._core = kind(versions, addresses)
        self._sort()
        self.renew()

    def _sort(self) -> None:
        """Find out which tensors can be described to C."""
        core, plain = self._core, [_is_plain(t) for t in self._tensors]
        if not all(plain) or not core.note(self._tensors):
            pairs = zip(self._tensors, plain, strict=True)
            plain = [is_so and core.note([t]) for t, is_so in pairs]
        self._plain_places = [i for i, is_so in enumerate(plain) if is_so]
        self._plain = [self._tensors[i] for i in self._plain_places]
        self._odd_places = [i for i, is_so in enumerate(plain) if not is_so]
        self._odd = [self._tensors[i] for i in self._odd_places]

    def same(self) -> bool:
        """Returns whether the tensors are as they were noted."""
        if not self._core.same(self._plain):
            return False
        return not self._odd or [self._shown(t) for t in self._odd] == self._odd_noted

    def described(self) -> tuple[Any, list[Tensor]] | None:
        """Returns what `quick_look` takes; None where C cannot describe all tensors."""
        return None if self._odd or not EXCHANGE else (self._core, self._plain)

    def renew(self) -> None:
        """Note the state anew."""
        if not self._core.note(self._plain):
            self._sort()
            self._core.note(self._plain)
        self._odd_noted = [self._shown(t) for t in self._odd]

    def renew_one(self, index: int) -> None:
        """Note the state of one tensor anew, by its place in the list."""
        if index in self._odd_places:
            at = self._odd_places.index(index)
            self._odd_noted[at] = self._shown(self._tensors[index])
        else:
            at = self._plain_places.index(index)
            self._core.note_one(at, self._tensors[index])

    def noted(self) -> list[tuple[int, int, int]]:
        """Returns the noted version, address, and a hash of the rest, of each tensor.

        Version and address are 0 where a tensor has none, or they are not wanted.
        """
        found = [(0, 0, 0)] * len(self._tensors)
        for i, mark in zip(self._plain_places, self._core.noted(), strict=True):
            found[i] = mark
        for i, shown in zip(self._odd_places, self._odd_noted, strict=True):
            found[i] = shown
        return found

    def now(self) -> list[tuple[int, int, int]]:
        """Returns what `noted` would return after `renew`, without noting it."""
        other = Marks(self._tensors, versions=self._versions, addresses=self._addresses)
        return other.noted()

    def _shown(self, t: Tensor) -> tuple[int, int, int]:
        version, address = mark_of(t)
        shape = () if t.is_nested else t.shape
        strides = t.stride() if t.layout == torch.strided and not t.is_nested else ()
        rest = hash((t.dtype, t.device, shape, strides))
        return (
            version if self._versions else 0,
            address if self._addresses else 0,
            rest,
        )


def quick_look(
    contents: tuple[list[Any], list[Any]],
    items: tuple[list[Any], list[Any], list[Any]],
    flags: list[tuple[list[Any], str, list[Any]]],
    marks: list[Marks],
) -> Callable[[], bool] | None:
    """Returns a function that tells by one call whether all is as it was.

    Args:
        contents: dictionaries and their values, as for `values_are`.
        items: dictionaries, keys and values, as for `items_are`.
        flags: objects, the name of an attribute and its values, as for `reads`.
        marks: noted before.

    Returns:
        The function, which holds until one of the lists is another one; None where
        some tensor cannot be looked at so.
    """
    described = [found for m in marks if (found := m.described()) is not None]
    if len(described) < len(marks):
        return None
    return partial(_ops.unchanged, contents, items, flags, described)


def mark_of(t: Tensor) -> tuple[int, int]:
    """Returns a tensor's version and address, as far as it has them."""
    version = 0 if t.is_inference() else t._version
    return version, t.data_ptr() if _has_address(t) else 0


def _has_address(t: Tensor) -> bool:
    return t.layout == torch.strided and type(t) in (torch.Tensor, torch.nn.Parameter)


def _is_plain(t: Tensor) -> bool:
    return _has_address(t) and not t.is_inference()


class Places:
    """Where each of many dense tensors lies in one flat vector."""

    def __init__(
        self, places: list[tuple[tuple[int, ...], tuple[int, ...], int]]
    ) -> None:
        """`places` are shape, strides and first element of each tensor."""
        self._places = places
        self._core = None
        if EXCHANGE:
            self._core = _ops.Places([(list(a), list(b), n) for a, b, n in places])

    def views(self, flat: Tensor) -> list[Tensor]:
        """Returns the tensors; `flat` has to begin where its storage begins."""
        floats = flat.dtype in (torch.float32, torch.float64)
        if self._core is not None and floats and flat.device.type == "cpu":
            found: list[Tensor] = self._core.views(flat.data_ptr(), flat.itemsize, flat)
            return found
        return [flat.as_strided(*place) for place in self._places]
