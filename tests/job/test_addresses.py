"""The address that other machines reach, with faked interfaces, names and answers."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from codedgrad.job import addresses, environment

DEBIAN = {"lo": "127.0.0.1", "docker0": "172.17.0.1", "eth0": "10.0.0.5"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with Debian's /etc/hosts, in which its name is 127.0.1.1."""
    monkeypatch.delenv("CODEDGRAD_ADDRESS", raising=False)
    monkeypatch.setattr(addresses, "_interfaces", lambda: DEBIAN)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.1.1", 0))]
    )
    monkeypatch.setattr(socket, "gethostbyname", lambda name: name)


@pytest.mark.usefixtures("machine")
def test_the_name_of_the_machine_is_not_taken_if_it_is_its_own() -> None:
    assert addresses.candidates() == ["10.0.0.5", "172.17.0.1"]


@pytest.mark.usefixtures("machine")
def test_the_name_is_taken_if_it_is_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infos = [(2, 1, 6, "", ("192.168.7.7", 0)), (2, 1, 6, "", ("10.0.0.5", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: infos)
    assert addresses.candidates() == ["10.0.0.5", "172.17.0.1", "192.168.7.7"]


@pytest.mark.usefixtures("machine")
def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert addresses.candidates() == ["10.0.0.5", "172.17.0.1"]


@pytest.mark.usefixtures("machine")
def test_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEDGRAD_ADDRESS", "node-1.cluster")
    assert addresses.candidates() == ["node-1.cluster"]


def test_all_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = socket.create_connection

    def connect(at: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(at[0])
        if at[0] != "10.0.0.5":
            raise TimeoutError("timed out")
        return real(("127.0.0.1", at[1]), timeout)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(socket, "create_connection", connect)
        hosts = ["172.17.0.1", "10.0.0.5", "192.168.7.7"]
        assert addresses.first_reachable(hosts, port) == ("10.0.0.5", "127.0.0.1")
    assert tried == ["172.17.0.1", "10.0.0.5"]


def test_if_none_answers_each_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match=rf"at port {port}: 127.0.0.1 \(.*refused\)"):
        addresses.first_reachable(["127.0.0.1"], port)
    with pytest.raises(OSError, match="it has none but the loopback"):
        addresses.first_reachable([], port)


@pytest.mark.usefixtures("machine")
def test_the_interface_of_an_address() -> None:
    assert addresses.interface_of("10.0.0.5") == "eth0"
    assert addresses.interface_of("10.9.9.9") is None


def test_the_interfaces_of_this_machine() -> None:
    assert addresses._interfaces()["lo"] == "127.0.0.1"


@pytest.mark.parametrize("by_user", [None, "eth7"])
@pytest.mark.parametrize("name", [None, "eth0"])
def test_gloo_uses_the_interface_unless_the_user_names_one(
    name: str | None, by_user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if by_user is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", by_user)
    with environment.gloo_interface(name):
        assert os.environ.get("GLOO_SOCKET_IFNAME") == (by_user or name)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == by_user
