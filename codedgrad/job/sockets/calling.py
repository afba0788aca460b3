"""How a worker calls at another one's door."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from codedgrad.errors import EnvironmentSetupError
from codedgrad.job.sockets import proof

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("codedgrad")

QUIET_S = 10.0  # before the first word about who is missing
_PROVE_S = 10.0  # longer than a door gives, so that the door is who ends it
_NAP_S = 0.05
_HANG_UPS = 60


class Refused(EnvironmentSetupError):
    """A door has refused this worker, or is none of this job."""


def call(
    open_line: Callable[[float], socket.socket],
    token: bytes,
    greeting: proof.Greeting,
    until: float,
) -> socket.socket:
    """Return a connection whose two ends have proved themselves.

    Args:
        open_line: connects to the door, within so many seconds.
        token: the job's secret.
        greeting: who calls whom.
        until: when to give up, in the time of `time.monotonic`. A door that does not
            answer is called again until then; one that hangs up, some times.

    Raises:
        Refused: the door says no, hangs up, or does not have the token.
        OSError: nobody answers, or the door's process has ended.
    """
    hung_up = 0
    said = time.monotonic()
    while True:
        try:
            return _call_once(open_line, token, greeting)
        except (ConnectionRefusedError, FileNotFoundError):
            raise  # its process has ended
        except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
            hung_up += 1  # it may have too many callers at a time
            if hung_up > _HANG_UPS:
                raise Refused(
                    f"the door of worker {greeting.door} hangs up; its log says why"
                ) from None
        except OSError as error:
            now = time.monotonic()
            if now > until:
                raise
            if now - said > QUIET_S:
                said = now
                log.warning(
                    "the door of worker %d does not answer (%s)", greeting.door, error
                )
        time.sleep(_NAP_S)


def _call_once(
    open_line: Callable[[float], socket.socket], token: bytes, greeting: proof.Greeting
) -> socket.socket:
    connection = open_line(_PROVE_S)
    connection.settimeout(_PROVE_S)
    try:
        _introduce(connection, token, greeting)
    except BaseException:
        connection.close()
        raise
    return connection


def _introduce(
    connection: socket.socket, token: bytes, greeting: proof.Greeting
) -> None:
    said = greeting.encode()
    connection.sendall(said)
    answer = hear(connection, proof.RANDOM_BYTES + proof.PROOF_BYTES)
    random, theirs = answer[: proof.RANDOM_BYTES], answer[proof.RANDOM_BYTES :]
    if not proof.proves(theirs, token, "door", (said, random)):
        raise Refused(
            f"who answers at the door of worker {greeting.door} does not have this "
            f"job's token; give all machines the same CODEDGRAD_TOKEN, and each job "
            f"another one"
        )
    connection.sendall(proof.prove(token, "caller", said, random))
    if connection.recv(1) != proof.TAKEN:
        raise Refused(
            f"worker {greeting.door} has refused worker {greeting.caller}; its log "
            f"says why"
        )


def hear(connection: socket.socket, wanted: int) -> bytes:
    """Return the next bytes that the other end says, so many.

    Raises:
        OSError: it says no more.
    """
    heard = b""
    while len(heard) < wanted:
        data = connection.recv(wanted - len(heard))
        if not data:
            raise ConnectionAbortedError("the other end has hung up")
        heard += data
    return heard
