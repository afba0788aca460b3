"""Whether an object has made of a state what it was given: kinds, dtypes and bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError


def check(name: str, here: Any, there: Any) -> None:
    """Compare the state of a tracked object with the one that it was given.

    Args:
        name: what it is called.
        here: what its `state_dict()` is after `load_state_dict(there)`.
        there: the state of the worker that gave it.

    Raises:
        ConfigError: they differ; it names the first entry that does.
    """
    if found := _difference(here, there, name):
        raise ConfigError(
            f"{found}, once it is loaded. A worker that comes back must be the same to "
            f"the bit: let load_state_dict() take over what state_dict() returns, and "
            f"keep what is this process's own out of it (torch's optimizers load all "
            f"but their steps in the parameter's dtype)"
        )


def _difference(here: Any, there: Any, at: str) -> str:
    """Returns the first difference in words, or ""."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        if set(here) != set(there):
            return f"{at} has {_keys(here, there)} here, and {_keys(there, here)} there"
        pairs = [(f"{at}[{key!r}]", here[key], there[key]) for key in there]
    elif type(here) is not type(there) and not _tensors(here, there):
        return f"{at} is a {type(here).__name__} here, and a {_name(there)} there"
    elif isinstance(here, list | tuple):
        if len(here) != len(there):
            return f"{at} has {len(here)} entries here, and {len(there)} there"
        pairs = [
            (f"{at}[{i}]", *both)
            for i, both in enumerate(zip(here, there, strict=True))
        ]
    else:
        return _of_values(here, there, at)
    found = (_difference(mine, other, place) for place, mine, other in pairs)
    return next(filter(None, found), "")


def _tensors(here: Any, there: Any) -> bool:
    return isinstance(here, Tensor) and isinstance(there, Tensor)


def _name(value: Any) -> str:
    return type(value).__name__


def _keys(mine: Mapping[Any, Any], other: Mapping[Any, Any]) -> str:
    more = sorted(map(repr, set(mine) - set(other)))[:4]
    return f"{', '.join(more)}, too," if more else "nothing more"


def _of_values(here: Any, there: Any, at: str) -> str:
    if isinstance(here, Tensor | np.ndarray | np.generic):
        mine, other = _kind(here), _kind(there)
        if mine != other:
            return f"{at} is {mine} here, and {other} there"
        alike = _bits(here) == _bits(there)
    elif isinstance(here, float | complex):
        alike = repr(here) == repr(there)  # NaN is like NaN, and -0.0 is unlike 0.0
    else:
        alike = bool(here == there)
    if alike:
        return ""
    if isinstance(here, bool | int | float | complex | str):
        return f"{at} is {str(here)[:80]!r} here, and {str(there)[:80]!r} there"
    return f"{at} has other values here than there"


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}"


def _bits(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return bytes(value.tobytes())
    dense = value.detach().cpu()
    dense = dense.to_dense() if dense.layout != torch.strided else dense
    flat = dense.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
