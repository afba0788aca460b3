"""What both ends of a new connection say: a greeting, and that they have the token.

Every part has a fixed length. Each end signs both ends' random bytes, the greeting and
its own part in the connection by HMAC-SHA256. So nothing that was heard elsewhere can
be said again, and an end cannot be made to sign for the other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import NamedTuple

REMEDY = (
    "give all workers one token: export CODEDGRAD_TOKEN=$(python -c 'import secrets; "
    "print(secrets.token_hex(16))') once, and the same on every machine"
)
TOKEN_BYTES = 16
RANDOM_BYTES = 32
PROOF_BYTES = 32
TAKEN = b"\x01"  # the door's last word
_FORM = struct.Struct("!9sB16sII32s")
GREETING_BYTES = _FORM.size
_NAME, _VERSION = b"codedgrad", 1


class Greeting(NamedTuple):
    """Who calls whom, for which mesh.

    Attributes:
        mesh: the digest of the mesh's name.
        caller: the rank in the job of who calls.
        door: the rank in the job of who is called.
        random: the caller's random bytes.
    """

    mesh: bytes
    caller: int
    door: int
    random: bytes

    def encode(self) -> bytes:
        """Return the bytes that are sent."""
        return _FORM.pack(_NAME, _VERSION, *self)


def greet(mesh: str, caller: int, door: int) -> Greeting:
    """Return a greeting with new random bytes."""
    return Greeting(digest(mesh), caller, door, secrets.token_bytes(RANDOM_BYTES))


def digest(mesh: str) -> bytes:
    """Return what stands for a mesh's name in a greeting."""
    return hashlib.sha256(mesh.encode()).digest()[:16]


def read_greeting(data: bytes) -> Greeting:
    """Return the greeting that was sent as `data`.

    Raises:
        ValueError: it is none, or one of another version.
    """
    name, version, *parts = _FORM.unpack(data)
    if name != _NAME:
        raise ValueError("it did not greet as a worker does")
    if version != _VERSION:
        raise ValueError(f"it speaks another version than {_VERSION}")
    return Greeting(*parts)


def prove(token: bytes, side: str, greeting: bytes, random: bytes) -> bytes:
    """Return the proof of one side, "door" or "caller".

    Args:
        token: the job's secret.
        side: who proves.
        greeting: as it was sent.
        random: the door's random bytes.
    """
    said = side.encode().ljust(8, b"\0") + greeting + random
    return hmac.new(token, said, hashlib.sha256).digest()


def proves(proof: bytes, token: bytes, side: str, said: tuple[bytes, bytes]) -> bool:
    """Return whether a proof is right; `said` is the greeting and the door's bytes."""
    return hmac.compare_digest(proof, prove(token, side, *said))


def new_token() -> bytes:
    """Draw a token."""
    return secrets.token_bytes(TOKEN_BYTES)
