"""Policies by name, with their settings from text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.lab.simulate import helpers, sequential, simple
from codedgrad.lab.simulate.approximate import approximate
from codedgrad.lab.simulate.outcome import Comm, Outcome, figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.lab.simulate.times import Times

POLICIES: dict[str, Callable[..., Outcome]] = {
    "sync": simple.sync,
    "backup": simple.backup,
    "fractional": simple.fractional,
    "cyclic": simple.cyclic,
    "scheduled": helpers.scheduled,
    "spread": helpers.spread,
    "partial": helpers.partial,
    "approximate": approximate,
    "sr_sgc": sequential.sr_sgc,
    "m_sgc": sequential.m_sgc,
    "dsag": sequential.dsag,
    "dropcompute": simple.dropcompute,
    "deadline": simple.deadline,
}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """("spread", {"micro": 8}) from "spread:micro=8".

    Raises:
        ConfigError: naming the policies or the settings that there are.
    """
    name, _, settings = text.strip().partition(":")
    if name not in POLICIES:
        raise ConfigError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    known = list(inspect.signature(POLICIES[name]).parameters.values())[2:]
    kinds = {p.name: type(p.default) for p in known}
    values: dict[str, Any] = {}
    for word in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key not in kinds:
            shown = ",".join(f"{k}=..." for k in kinds) or "nothing"
            raise ConfigError(f"{word!r} is no setting of {name}; it takes {shown}")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(
                f"{key}={value} of {name}: wanted {kinds[key].__name__}"
            ) from None
    return name, values


def run(text: str, times: Times, comm: Comm | None = None) -> Outcome:
    """Play `times` under a policy given as text."""
    name, settings = parse(text)
    return POLICIES[name](times, comm or Comm(), **settings)


def evaluate(text: str, times: Times, comm: Comm | None = None) -> dict[str, Any]:
    """The figures of a policy on `times`; see `codedgrad.lab.simulate.outcome.figures`."""
    comm = comm or Comm()
    return figures(text, times, run(text, times, comm), simple.sync(times, comm), comm)
