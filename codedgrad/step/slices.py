"""Pieces of a batch that is there already, without reading its samples again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut(batch: Sequence[Any], sizes: Sequence[int]) -> list[Any] | None:
    """Returns the arguments of a loss function for each piece of a batch.

    Args:
        batch: the arguments for the whole batch.
        sizes: samples of each piece, in order.

    Returns:
        None if something in the batch has another number of samples, or is of a type
        that cannot be cut.
    """
    try:
        return [tuple(piece) for piece in _cut_all(batch, sizes)]
    except _Uncut:
        return None


class _Uncut(Exception):
    """Something cannot be cut."""


def _cut_all(values: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    columns = [_cut(value, sizes) for value in values]
    if not columns:
        return [[] for _ in sizes]
    return [list(row) for row in zip(*columns, strict=True)]


def _cut(value: Any, sizes: Sequence[int]) -> list[Any]:
    total = sum(sizes)
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return [value] * len(sizes)
        if value.shape[0] != total:
            raise _Uncut
        return list(value.split(list(sizes)))
    if value is None or isinstance(value, (bool, int, float, str)):
        return [value] * len(sizes)
    if isinstance(value, Mapping):
        rows = _cut_all(list(value.values()), sizes)
        return _made(value, [dict(zip(value, row, strict=True)) for row in rows])
    if hasattr(type(value), "of_value"):  # a batch in a wrapper of ours
        return [value.of_value(piece) for piece in _cut(value.value, sizes)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        rows = _cut_all([getattr(value, name) for name in names], sizes)
        return [_replaced(value, dict(zip(names, row, strict=True))) for row in rows]
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return [value._make(row) for row in _cut_all(value, sizes)]
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        if len(value) == total and not any(isinstance(v, Tensor) for v in value):
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            return [value[s : s + n] for s, n in zip(starts, sizes, strict=True)]
        return [type(value)(row) for row in _cut_all(value, sizes)]
    raise _Uncut


def _made(like: Any, rows: list[dict[Any, Any]]) -> list[Any]:
    """Returns dictionaries as such ones; libraries have types of their own for them."""
    if type(like) is dict:
        return rows
    try:
        made = [type(like)(row) for row in rows]
    except Exception as error:  # of whoever's type it is
        raise _Uncut from error
    if any(list(one) != list(like) for one in made):
        raise _Uncut
    return made


def _replaced(value: Any, fields: dict[str, Any]) -> Any:
    try:
        return dataclasses.replace(value, **fields)
    except Exception as error:  # of whoever's type it is
        raise _Uncut from error
