"""At which address other machines reach this one.

The name of a machine is a bad guide: on Debian and Ubuntu it stands for 127.0.1.1 in
/etc/hosts, which is every machine's own. So the addresses of the network interfaces are
collected, those of bridges to containers last, and who is to connect tries them in
turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

from codedgrad.job import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = "127.0.0.1"
_TRY_S = 3.0  # for one address; one that is cut off by a firewall never answers
_SIOCGIFADDR = 0x8915  # asks Linux for an interface's IPv4 address
_BRIDGES = ("docker", "br-", "veth", "virbr", "podman", "cni", "flannel", "lxc")


def candidates() -> list[str]:
    """Return the addresses of this machine that others may reach, the likeliest first.

    Returns:
        What CODEDGRAD_ADDRESS names, alone, if it is set. Otherwise the addresses of
        all interfaces and of the machine's name, without those of the loopback.
    """
    given = environment.address()
    if given:
        return [given]
    found = _interfaces()
    wired = sorted(found, key=lambda name: name.startswith(_BRIDGES))
    every = [*(found[name] for name in wired), *_of_the_name()]
    return [a for a in dict.fromkeys(every) if not is_loopback(a)]


def towards(host: str, port: int) -> str | None:
    """Return the address of this machine by which it reaches `host`.

    Returns:
        What CODEDGRAD_ADDRESS names, if it is set. Where `host` is this machine, the
        likeliest of the others that `candidates` finds; None if there is none.
    """
    given = environment.address()
    if given:
        return given
    with contextlib.suppress(OSError):
        for family, _, _, _, where in socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM
        ):
            with socket.socket(family, socket.SOCK_DGRAM) as asked:
                asked.connect(where)  # sends nothing
                own = str(asked.getsockname()[0])
            if not is_loopback(own):
                return own
    return next(iter(candidates()), None)


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens at an address of this machine, IPv4 or IPv6.

    Raises:
        OSError: nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


def first_reachable(hosts: Sequence[str], port: int) -> tuple[str, str]:
    """Connect to the first of another machine's addresses that answers.

    Args:
        hosts: The addresses, the likeliest first.
        port: The port, at which somebody listens there.

    Returns:
        That address, and this machine's own address of the connection.

    Raises:
        OSError: None answers; the message says why, for each.
    """
    problems = []
    for host in hosts:
        try:
            with socket.create_connection((host, port), _TRY_S) as connection:
                return host, str(connection.getsockname()[0])
        except OSError as error:
            problems.append(f"{host} ({error})")
    raise OSError(
        f"no address of the first worker answers at port {port}: "
        f"{', '.join(problems) or 'it has none but the loopback'}"
    )


def interface_of(address: str) -> str | None:
    """Return the name of the interface with this address; None if there is none."""
    with contextlib.suppress(OSError):  # CODEDGRAD_ADDRESS may be a name
        address = socket.gethostbyname(address)
    names = [name for name, own in _interfaces().items() if own == address]
    return names[0] if names else None


def _interfaces() -> dict[str, str]:
    """Return the IPv4 address of every interface that has one, by name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _of_the_name() -> list[str]:
    """Return the addresses that the machine's name stands for."""
    try:
        infos = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return []
    return [str(info[4][0]) for info in infos]


def is_loopback(address: str) -> bool:
    """Return whether no other machine reaches this address."""
    return ipaddress.ip_address(address).is_loopback
