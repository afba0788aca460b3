"""Handles of asynchronous operations, whose results are there at once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_numbers = itertools.count(1)
_results: dict[int, tuple[str | None, Any]] = {}


def done(
    operation: Callable[..., Any], *args: Any, name: str | None = None, **how: Any
) -> int:
    """Carry an operation out, and return the handle of its result.

    Raises:
        ConfigError: an operation of this name has not been synchronised.
    """
    if name is not None and any(name == other for other, _ in _results.values()):
        raise ConfigError(
            f"an operation of the name {name!r} is under way already; call "
            f"synchronize(handle) on it first, or give another name"
        )
    result = operation(*args, name=name, **how)
    handle = next(_numbers)
    _results[handle] = name, result
    return handle


def poll(handle: int) -> bool:
    """Return True: the result is there, and `synchronize` does not wait.

    Raises:
        ConfigError: there is no such handle.
    """
    _check(handle)
    return True


def synchronize(handle: int) -> Any:
    """Return the result of an asynchronous operation, and forget its handle.

    Raises:
        ConfigError: there is no such handle, or it was synchronised before.
    """
    _check(handle)
    return _results.pop(handle)[1]


def _check(handle: int) -> None:
    if handle not in _results:
        raise ConfigError(
            f"got the handle {handle!r}, wanted one of an operation that ends with "
            f"_async and has not been synchronised"
        )


class Handle(int):
    """A handle that may also be called, for its result."""

    def __call__(self) -> Any:
        """Return the result, and forget the handle; see `synchronize`."""
        return synchronize(self)
