"""Pieces of a batch that is there already, without reading its samples again."""

from __future__ import annotations

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
    if type(value) is dict:
        rows = _cut_all(list(value.values()), sizes)
        return [dict(zip(value, row, strict=True)) for row in rows]
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        if len(value) == total and not any(isinstance(v, Tensor) for v in value):
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            return [value[s : s + n] for s, n in zip(starts, sizes, strict=True)]
        return [type(value)(row) for row in _cut_all(value, sizes)]
    raise _Uncut
