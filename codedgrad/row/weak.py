"""Hooks that do not keep their owner alive.

The hooks on a parameter are out of the reach of Python's garbage collector: torch holds
them in C++. A hook that held its owner, which holds the parameter, would keep all three
for ever, and with them the exchange of a model that nobody has any more.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls `method` for as long as its object lives.

    Args:
        method: a bound method; somebody else must keep its object.
    """
    reference: Any = weakref.WeakMethod(method)

    def call(*values: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*values)

    return call
