"""The families by name, for command lines and configuration files."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

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
    """Code from text such as "spread:micro=4,copies=2".

    Raises:
        ConfigError: naming the families or the parameters that there are.
    """
    name, _, settings = text.strip().partition(":")
    if name not in FAMILIES:
        raise ConfigError(f"no code {name!r}; there are {', '.join(FAMILIES)}")
    known = list(inspect.signature(FAMILIES[name]).parameters)[1:]
    arguments: dict[str, int | str] = {}
    for word in filter(None, settings.split(",")):
        key, equals, value = word.strip().partition("=")
        if not equals or key not in known:
            raise ConfigError(
                f"{word!r} is no setting of {name}; write {name}:"
                + ",".join(f"{k}=..." for k in known)
            )
        arguments[key] = int(value) if value.lstrip("-").isdigit() else value
    return FAMILIES[name](workers, **arguments)
