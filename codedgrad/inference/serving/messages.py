"""What workers of a predictor say to one another; each may come late or never.

    ASK     owner -> helper    compute this query, too
    REPLY   helper -> owner    its output, or why there is none; one for each ASK
    FORGET  owner -> helper    the query is answered

A message that fits nothing its reader knows of is dropped.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from codedgrad.job import objects

ASK, REPLY, FORGET = 1, 2, 3  # kinds; they are the tags of the messages
VALUE, NEEDLESS, FAILED = 0, 1, 2  # what a reply has

_ASK = struct.Struct("<qb")  # number of the query, draws
_REPLY = struct.Struct("<qbd")  # number, what it has, seconds of the pass
_FORGET = struct.Struct("<q")
UNREADABLE = -1  # in place of the number of an ask that cannot be read
_DRAWS: dict[bool | None, int] = {None: -1, False: 0, True: 1}


class Reply(NamedTuple):
    """A reply as its reader sees it; `value` is a text where there is none."""

    number: int
    status: int
    seconds: float
    value: Any


def ask(number: int, draws: bool | None, inputs: tuple[Any, ...]) -> bytes:
    """Return an ASK.

    Raises:
        ConfigError: the inputs hold something that cannot be sent.
    """
    return _ASK.pack(number, _DRAWS[draws]) + objects.encode(list(inputs))


def read_ask(data: bytes) -> tuple[int, bool | None, bytes]:
    """Return the number, whether the model draws, and the inputs for `inputs_of`."""
    number, draws = _ASK.unpack_from(data)
    known = {code: value for value, code in _DRAWS.items()}
    return number, known[draws], data[_ASK.size :]


def inputs_of(data: bytes) -> tuple[Any, ...]:
    """Return the inputs of an ASK."""
    return tuple(objects.decode(data))


def reply(number: int, status: int, seconds: float, value: Any) -> bytes:
    """Return a REPLY.

    Raises:
        ConfigError: the value is something that cannot be sent.
    """
    return _REPLY.pack(number, status, seconds) + objects.encode(value)


def read_reply(data: bytes) -> Reply:
    """Return what a REPLY says."""
    number, status, seconds = _REPLY.unpack_from(data)
    return Reply(number, status, seconds, objects.decode(data[_REPLY.size :]))


def forget(number: int) -> bytes:
    """Return a FORGET."""
    return _FORGET.pack(number)


def read_forget(data: bytes) -> int:
    """Return the number of the query."""
    return int(_FORGET.unpack(data)[0])
