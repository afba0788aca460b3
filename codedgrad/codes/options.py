"""Texts such as "spread:micro=4,copies=2": a name, and values for some of its keys.

Codes, policies of the simulator and faults are all named this way, on command lines
and in configuration files. Each of them has its own names, keys and error messages;
only the syntax is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def parse(
    text: str,
    keys_of: Callable[[str], Collection[str]],
    refusal: Callable[[str, str], str],
) -> tuple[str, dict[str, str]]:
    """Split NAME:KEY=VALUE,KEY=VALUE into the name and its values, still as text.

    Args:
        text: what the user has written.
        keys_of: returns the keys that a name takes; raises ConfigError where there is
            no such name.
        refusal: returns the error message for a name and a word after it that is not
            KEY=VALUE with one of the name's keys.

    Raises:
        ConfigError: by `keys_of`, or with the message of `refusal`.
    """
    name, _, rest = text.strip().partition(":")
    keys = keys_of(name)
    values: dict[str, str] = {}
    for word in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key not in keys:
            raise ConfigError(refusal(name, word))
        values[key] = value
    return name, values
