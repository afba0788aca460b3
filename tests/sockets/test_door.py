"""A door lets in who has the token, once, and refuses everybody else."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from codedgrad.job.sockets import calling, door, proof
from codedgrad.job.sockets.door import Door

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = bytes(range(16))


class Place:
    """The door of worker 1, and ways to call there."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "door")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen()
        self.door = Door(1, TOKEN, [listening])

    def line(self, timeout_s: float = 5.0) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def call(
        self, caller: int, token: bytes = TOKEN, mesh: str = "m", to: int = 1
    ) -> socket.socket:
        greeting = proof.greet(mesh, caller, to)
        return calling.call(self.line, token, greeting, time.monotonic() + 0.2)

    def hears_nothing(self, said: bytes) -> bool:
        """Says this, and nothing more; returns whether the door hangs up."""
        with self.line() as connection, contextlib.suppress(ConnectionResetError):
            connection.sendall(said)
            while data := connection.recv(1000):
                assert len(data) <= proof.RANDOM_BYTES + proof.PROOF_BYTES
        return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.door.close()


def test_who_has_the_token_comes_in(place: Place) -> None:
    for caller, mesh in ((2, "m"), (3, "m"), (2, "other")):
        with place.call(caller, mesh=mesh) as here:
            there = place.door.take(mesh, caller, 5.0)
            assert there is not None
            with there:
                here.sendall(b"first words")
                there.setblocking(True)
                assert there.recv(100) == b"first words"
    assert place.door.take("m", 4, 0.01) is None
    assert place.door.refusals == {}


def test_a_slot_is_given_once(place: Place) -> None:
    with place.call(2):
        with pytest.raises(calling.Refused, match="worker 1 has refused worker 2"):
            place.call(2)
        assert place.door.refusals == {"worker 2 is connected already": 1}
        there = place.door.take("m", 2, 5.0)
        assert there is not None
        there.close()


def test_wrong_tokens(place: Place) -> None:
    with pytest.raises(calling.Refused, match="does not have this job's token"):
        place.call(2, token=bytes(16))
    # Who does not look at the door's proof, and signs with another token:
    greeting = proof.greet("m", 2, 1).encode()
    with place.line() as connection:
        connection.sendall(greeting)
        random = connection.recv(1000)[: proof.RANDOM_BYTES]
        connection.sendall(proof.prove(bytes(16), "caller", greeting, random))
        assert connection.recv(1) == b""
    assert place.door.take("m", 2, 0.01) is None
    assert place.door.refusals["it does not have this job's token"] == 1


def test_what_a_door_has_said_opens_none(place: Place) -> None:
    """Nobody can let the door sign, and say that to it, or say again what was heard."""
    greeting = proof.greet("m", 2, 1).encode()
    with place.line() as connection:
        connection.sendall(greeting)
        answer = connection.recv(1000)
        connection.sendall(answer[proof.RANDOM_BYTES :])
        assert connection.recv(1) == b""
    old = proof.prove(TOKEN, "caller", greeting, answer[: proof.RANDOM_BYTES])
    with place.line() as connection:
        connection.sendall(greeting)
        connection.recv(1000)  # other random bytes
        connection.sendall(old)
        assert connection.recv(1) == b""
    assert place.door.take("m", 2, 0.01) is None


def test_garbage_is_refused_and_logged_once(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "_HANG_UPS", 2)
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        for said in (b"GET / HTTP/1.1\r\n\r\n" * 10, os.urandom(500), bytes(66)):
            assert place.hears_nothing(said)
        greeting = proof.greet("m", 2, 1).encode()
        assert place.hears_nothing(greeting[:9] + b"\x09" + greeting[10:])
        with pytest.raises(calling.Refused, match="worker 3 hangs up"):
            place.call(2, to=3)
        place.line().close()
        with place.call(2):  # the door is as good as ever
            there = place.door.take("m", 2, 5.0)
    assert there is not None
    there.close()
    text = caplog.text
    assert text.count("it did not greet as a worker does") == 1
    assert place.door.refusals["it did not greet as a worker does"] == 3
    assert "it speaks another version than 1" in text
    assert text.count("it wanted another worker") == 1
    assert text.count("hung up before it had proved itself") == 1


def test_who_is_slow_or_one_of_many_has_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_PROVE_S", 0.3)
    monkeypatch.setattr(door, "_MOST_CALLERS", 3)
    place = Place(tmp_path)
    lines = [place.line() for _ in range(5)]
    for line in lines:
        with contextlib.suppress(OSError):  # the first ones have left already
            line.sendall(b"c")  # and then nothing for a long time
    with place.call(2):
        there = place.door.take("m", 2, 5.0)
        assert there is not None
        there.close()
    for line in lines:
        with (
            line,
            contextlib.suppress(ConnectionResetError),
        ):  # it had not read our byte
            assert line.recv(1) == b""
    assert place.door.refusals["too many called at a time"] >= 2
    assert any(text.startswith("it took longer") for text in place.door.refusals)
    place.door.close()


def test_a_child_of_this_process_keeps_no_door(place: Place) -> None:
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, b"x")  # the child runs, and lives on
        time.sleep(30.0)
        os._exit(0)
    try:
        os.read(here, 1)
        place.door.close()
        with pytest.raises(ConnectionRefusedError):
            place.line()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(here)
        os.close(there)


def test_a_door_that_does_not_answer_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_timeout_s: float) -> socket.socket:
        raise TimeoutError("no answer")

    monkeypatch.setattr(calling, "QUIET_S", 0.05)
    greeting = proof.greet("m", 0, 1)
    with (
        caplog.at_level(logging.WARNING, "codedgrad"),
        pytest.raises(TimeoutError),
    ):
        calling.call(silent, TOKEN, greeting, time.monotonic() + 0.2)
    texts = {record.getMessage() for record in caplog.records}
    assert texts == {"the door of worker 1 does not answer (no answer)"}
