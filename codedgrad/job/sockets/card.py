"""What a worker tells the others of itself before they are connected."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

MOST_BYTES = 4096  # of a card


@dataclass(frozen=True)
class Card:
    """Where a worker is. Nothing in it is secret.

    Attributes:
        machine: the name of its machine, another one for each.
        path: where its door is for callers of its machine; "" if it has none.
        host: where it is for callers of other machines, an address; "" if nowhere.
        port: the port of that address.
        token: the file that holds the job's token, for workers of its machine; "" if
            there is none.
    """

    machine: str
    path: str = ""
    host: str = ""
    port: int = 0
    token: str = ""

    def encode(self) -> bytes:
        """Return the card as bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes, rank: int) -> Card:
        """Return the card of worker `rank`.

        Raises:
            ValueError: it is none.
        """
        problem = f"what came as the card of worker {rank} is none"
        if len(data) > MOST_BYTES:
            raise ValueError(f"{problem}: it has {len(data)} bytes")
        try:
            fields = json.loads(data)
        except ValueError:
            fields = data
        wanted = {name: type(value) for name, value in asdict(cls("")).items()}
        found = fields if isinstance(fields, dict) else {}
        if {name: type(value) for name, value in found.items()} != wanted:
            raise ValueError(f"{problem}: {fields!r}")
        return cls(**found)


def machine_name() -> str:
    """Return a name of this machine: of the boot of its kernel, and of the container.

    Containers of one machine have names of their own, and may share no files.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "unknown"
    try:
        files = Path("/proc/self/ns/mnt").stat().st_ino
    except OSError:
        files = 0
    return f"{socket.gethostname()}-{boot}-{files}"
