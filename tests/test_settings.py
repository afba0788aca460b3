"""Settings: the keywords are shorthand for the dataclasses' fields."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from codedgrad.settings import (
    ExchangeSettings,
    HelpSettings,
    Keywords,
    RunSettings,
    Settings,
    approximate,
    combine,
    resolve,
)

from codedgrad.errors import ConfigError

GROUPS = {"exchange": ExchangeSettings, "help": HelpSettings, "run": RunSettings}


def test_every_field_is_a_keyword_and_every_keyword_a_field() -> None:
    fields = [f.name for group in GROUPS.values() for f in dataclasses.fields(group)]
    assert len(fields) == len(set(fields))
    assert {*fields, "policy"} == set(Keywords.__annotations__)


@pytest.mark.parametrize("name", sorted(Keywords.__annotations__))
def test_a_keyword_changes_its_field_alone(name: str) -> None:
    keywords: Any = {name: "marked"}
    combined = combine(None, keywords)
    for group, made in GROUPS.items():
        for field in dataclasses.fields(made):
            value = getattr(getattr(combined, group), field.name)
            assert value == ("marked" if field.name == name else field.default)
    assert combined.policy == ("marked" if name == "policy" else "exact")


def test_keywords_win_over_settings() -> None:
    settings = Settings(exchange=ExchangeSettings(wire="float16", window=4))
    combined = combine(settings, {"wire": "bfloat16"})
    assert combined.exchange == ExchangeSettings(wire="bfloat16", window=4)
    assert settings.exchange.wire == "float16"


def test_an_unknown_keyword_is_named_and_the_known_ones_too() -> None:
    keywords: Any = {"patients": 1.0}
    with pytest.raises(TypeError, match=r"\['patients'\].*patience"):
        combine(None, keywords)


def test_the_default_for_nonfinite_follows_the_policy() -> None:
    assert Settings().on_nonfinite() == "raise"
    assert Settings(policy=approximate(0.1)).on_nonfinite() == "refuse"
    # With max_error=0 every step is exact.
    assert Settings(policy=approximate(0.0)).on_nonfinite() == "raise"
    with pytest.raises(ConfigError, match="on_nonfinite must be one of"):
        Settings(run=RunSettings(on_nonfinite="refuse")).on_nonfinite()


def test_the_bounds_of_an_estimate() -> None:
    """The error is bounded by default, but not beside a bound that is given alone."""
    policies = (
        approximate(),
        approximate(0.1),
        approximate(max_noise=0.5),
        approximate(0.1, max_noise=0.5),
    )
    inf = math.inf
    assert [(p.max_error, p.max_noise) for p in policies] == [
        (0.1, inf),
        (0.1, inf),
        (inf, 0.5),
        (0.1, 0.5),
    ]


def test_a_policy_is_exact_or_approximate() -> None:
    assert resolve("exact") is None
    assert resolve(approximate(0.0)) is None
    assert resolve(approximate(0.2)) == approximate(0.2)
    assert resolve(approximate(max_noise=0.0)) is None
    with pytest.raises(ConfigError, match="policy must be"):
        resolve("roughly")
