"""The meeting place of several machines: where it may be, and who waits for it."""

from __future__ import annotations

import logging
import socket

import pytest

from codedgrad.errors import ConfigError, EnvironmentSetupError
from codedgrad.job import addresses
from codedgrad.job.sockets import calling
from codedgrad.job.sockets.reception import Guest, Reception

TOKEN = bytes(range(16))


def near(_host: str, port: int, backlog: int) -> socket.socket:
    """Listen at the loopback, to which a machine's name leads on Debian."""
    return socket.create_server(("127.0.0.1", port), backlog=backlog)


def test_a_name_that_leads_to_the_loopback_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "listen", near)
    with pytest.raises(ConfigError, match=r"node1 is 127\.0\.0\.1, where no other"):
        Reception("node1", 0, 2, TOKEN)
    for host in ("localhost", "127.0.0.1"):  # whoever says so means it
        Reception(host, 0, 2, TOKEN).close()


def test_who_waits_for_the_meeting_place_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "QUIET_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guest = Guest("127.0.0.1", port, 2, token=TOKEN, wait_s=0.1)
    with (
        caplog.at_level(logging.WARNING, "codedgrad"),
        pytest.raises(EnvironmentSetupError, match="nobody answers"),
    ):
        guest.leave(1, b"card")
    texts = [record.getMessage() for record in caplog.records]
    assert texts
    assert f"nobody answers at --rendezvous 127.0.0.1:{port}" in texts[0]
