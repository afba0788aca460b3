"""Small functions that the families share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.codes.code import Row
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def own_rows(work: Sequence[Sequence[int]]) -> tuple[tuple[Row, ...], ...]:
    """Return one uncoded row for every item, sent as soon as the item is done."""
    return tuple(
        tuple(Row(i, (i,), (1.0,)) for i in range(len(items))) for items in work
    )


def positive(**values: int) -> None:
    """Raise ConfigError unless every value is an integer >= 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
