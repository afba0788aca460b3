"""The families by name, for command lines and configuration files."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from codedgrad.codes import options
from codedgrad.codes.cyclic import cyclic
from codedgrad.codes.fractional import fractional
from codedgrad.codes.scheduled import scheduled
from codedgrad.codes.spread import spread
from codedgrad.codes.uncoded import uncoded
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.codes.code import Code

FAMILIES: dict[str, Callable[..., Code]] = {
    "uncoded": uncoded,
    "spread": spread,
    "scheduled": scheduled,
    "fractional": fractional,
    "cyclic": cyclic,
}


def parse(text: str, workers: int) -> Code:
    """Build a code for `workers` workers from text such as "spread:micro=4,copies=2".

    Raises:
        ConfigError: there is no such family or parameter (the message lists those that
            there are), or the family refuses a value.
    """
    name, values = options.parse(text, _keys_of, _refusal)
    return FAMILIES[name](workers, **{k: _value(v) for k, v in values.items()})


def _keys_of(name: str) -> list[str]:
    if name not in FAMILIES:
        raise ConfigError(f"no code {name!r}; there are {', '.join(FAMILIES)}")
    return list(inspect.signature(FAMILIES[name]).parameters)[1:]  # without `workers`


def _refusal(name: str, word: str) -> str:
    known = ",".join(f"{key}=..." for key in _keys_of(name))
    return f"{word!r} is no setting of {name}; write {name}:{known}"


def _value(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
