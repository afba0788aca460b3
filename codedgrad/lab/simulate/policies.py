"""The policies by name, with their settings from text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from codedgrad.codes import options
from codedgrad.errors import ConfigError
from codedgrad.lab.simulate import helpers, sequential, simple
from codedgrad.lab.simulate.approximate import approximate
from codedgrad.lab.simulate.outcome import Comm, Outcome, figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.lab.simulate.times import Times

# A policy takes the times, the network, and its settings as keywords with defaults.
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
    """Return ("spread", {"micro": 8}) for "spread:micro=8".

    A value gets the type of the setting's default.

    Raises:
        ConfigError: there is no such policy or setting (the message lists those that
            there are), or a value is of another type.
    """
    name, words = options.parse(text, _types_of, _refusal)
    types = _types_of(name)
    values: dict[str, Any] = {}
    for key, word in words.items():
        try:
            values[key] = types[key](word)
        except ValueError:
            raise ConfigError(
                f"{key}={word} of {name}: wanted {types[key].__name__}"
            ) from None
    return name, values


def _types_of(name: str) -> dict[str, type]:
    if name not in POLICIES:
        raise ConfigError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    settings = inspect.signature(POLICIES[name]).parameters.values()
    return {p.name: type(p.default) for p in settings if p.kind is p.KEYWORD_ONLY}


def _refusal(name: str, word: str) -> str:
    known = ",".join(f"{key}=..." for key in _types_of(name)) or "nothing"
    return f"{word!r} is no setting of {name}; it takes {known}"


def run(text: str, times: Times, comm: Comm | None = None) -> Outcome:
    """Play `times` under a policy given as text."""
    name, settings = parse(text)
    return POLICIES[name](times, comm or Comm(), **settings)


def evaluate(text: str, times: Times, comm: Comm | None = None) -> dict[str, Any]:
    """Return a policy's figures; see `codedgrad.lab.simulate.outcome.figures`."""
    comm = comm or Comm()
    return figures(text, times, run(text, times, comm), simple.sync(times, comm), comm)
