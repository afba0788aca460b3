"""How workers that know nothing of one another get each other's cards.

A meeting carries cards and nothing else. What it says of a door need not be true: who
answers there has to prove that it has the token.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job.sockets.calling import QUIET_S
from codedgrad.job.sockets.card import Card

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("codedgrad")

_NAP_S = 0.01


class Meeting(Protocol):
    """A place where every worker leaves its card and finds the others'."""

    def leave(self, rank: int, card: bytes) -> None:
        """Leave the card of this worker."""

    def find(self, rank: int) -> bytes | None:
        """Return the card of a worker, or None while it has left none."""


class Folder(NamedTuple):
    """A folder of this machine, which only this user can enter."""

    path: Path

    def leave(self, rank: int, card: bytes) -> None:
        """Write the card under another name first: it is there whole or not at all."""
        part = self.path / f"part.{rank}"
        part.write_bytes(card)
        part.rename(self.path / f"card.{rank}")

    def find(self, rank: int) -> bytes | None:
        """Read the card of a worker."""
        try:
            return (self.path / f"card.{rank}").read_bytes()
        except FileNotFoundError:
            return None


class Store:
    """The store that torchrun runs, at MASTER_ADDR and MASTER_PORT.

    Args:
        host: its address.
        port: its port.
        prefix: what the names of this job's cards begin with; another one for each
            time that torchrun has started the job.
    """

    def __init__(self, host: str, port: int, prefix: str) -> None:
        import torch.distributed as dist

        connect: Any = dist.TCPStore  # type: ignore[attr-defined]
        limit = timedelta(seconds=60)
        try:
            self._store = connect(host, port, None, False, limit)
        except RuntimeError as error:  # torch has an error class of its own for each
            raise EnvironmentSetupError(
                f"torchrun's store does not answer at {host}:{port} (MASTER_ADDR and "
                f"MASTER_PORT): {str(error).splitlines()[0]}"
            ) from None
        self._prefix = prefix

    def leave(self, rank: int, card: bytes) -> None:
        """Set the card's name in the store."""
        self._store.set(f"{self._prefix}/{rank}", card)

    def find(self, rank: int) -> bytes | None:
        """Get the card of a worker from the store."""
        name = f"{self._prefix}/{rank}"
        return bytes(self._store.get(name)) if self._store.check([name]) else None


def exchange(
    meeting: Meeting, rank: int, size: int, card: Card, timeout_s: float
) -> list[Card]:
    """Leave this worker's card, and wait for those of all others.

    Returns:
        The cards of all workers, by rank.

    Raises:
        EnvironmentSetupError: some have not come, or have left no card.
    """
    meeting.leave(rank, card.encode())
    cards: dict[int, Card] = {rank: card}
    begin = said = time.monotonic()
    while True:
        for other in range(size):
            if other not in cards and (data := meeting.find(other)) is not None:
                try:
                    cards[other] = Card.decode(data, other)
                except ValueError as error:
                    raise EnvironmentSetupError(str(error)) from None
        missing = [w for w in range(size) if w not in cards]
        if not missing:
            return [cards[w] for w in range(size)]
        waited_s = time.monotonic() - begin
        if waited_s > timeout_s:
            raise EnvironmentSetupError(
                f"worker(s) {missing} have not come to the start of the job for "
                f"{waited_s:.0f} s; do all of them call codedgrad.init()?"
            )
        if time.monotonic() - said > QUIET_S:
            said = time.monotonic()
            log.warning("worker %d waits for worker(s) %s to join", rank, missing)
        time.sleep(_NAP_S)
