"""This process among the workers of a job over sockets.

A process joins once; where it leaves a job and joins another one, in the same process,
it keeps its door.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from codedgrad.errors import EnvironmentSetupError, WorkerError
from codedgrad.job import addresses
from codedgrad.job.sockets import calling, meeting, proof
from codedgrad.job.sockets.card import Card, machine_name
from codedgrad.job.sockets.desk import Desk
from codedgrad.job.sockets.door import Door
from codedgrad.job.sockets.marks import Marks
from codedgrad.job.sockets.reception import Guest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.job.environment import SocketJob

log = logging.getLogger("codedgrad")

_JOIN_S = 600.0  # until all workers have come, and have connected
_BACKLOG = 128
_LOOK_S = 1.0
_MOST_PATH = 80  # bytes; the kernel takes 107 for the whole path of a socket


class World:
    """This process, its door, and the cards of all workers.

    Args:
        job: what the launcher has said.

    Raises:
        EnvironmentSetupError: the others did not come, or no token can be had.
    """

    def __init__(self, job: SocketJob) -> None:
        self.rank, self.size = job.rank, job.size
        self.marks = Marks(Path(job.folder)) if job.folder else None
        self.desk = Desk(Path(job.folder)) if job.folder else None
        # 1 for a process in the place of a first one; None where there is none ever.
        self.process = None if self.desk is None else self.desk.process(job.rank)
        self.generation = 0
        if job.size == 1:
            self.cards = [Card(machine_name())]
            return
        self._folder = _own_folder(job.folder)
        atexit.register(self.clean_up)
        place = self._meeting = _meeting_of(job)
        token = job.token or (proof.new_token() if job.rank == 0 else b"")
        card, listening = self._open(job, token if not job.token else b"")
        # Before others can call, and before this worker has the token of worker 0.
        self.cards = meeting.exchange(place, job.rank, job.size, card, _JOIN_S)
        self._token = token or _token_of(self.cards[0], self.cards[job.rank])
        self._door = Door(job.rank, self._token, listening)
        atexit.register(self._door.close)

    def clean_up(self) -> None:
        """Remove this worker's files."""
        if self.size > 1:
            shutil.rmtree(self._folder, ignore_errors=True)

    def next_name(self) -> str:
        """Return the name of a new job's first channel."""
        self.generation += 1
        return f"job {self.generation}"

    def look_up(self, rank: int) -> None:
        """Find another process in the place of a worker.

        Raises:
            EnvironmentSetupError: what it has left is no card.
        """
        data = self._meeting.find(rank)
        try:
            if data is not None:
                self.cards[rank] = Card.decode(data, rank)
        except ValueError as error:
            raise EnvironmentSetupError(str(error)) from None

    def connect(
        self, mesh: str, ranks: Sequence[int], wait_s: float = _JOIN_S
    ) -> list[int]:
        """Connect this worker with the others of a mesh. Collective over them.

        Args:
            mesh: its name; each is used once.
            ranks: its workers.
            wait_s: until all of them have come.

        Returns:
            A socket for each of the ranks, -1 for this one; they are the caller's.

        Raises:
            WorkerError: one of them has gone, or did not come.
            EnvironmentSetupError: one of them does not take this worker.
        """
        until = time.monotonic() + wait_s
        found: dict[int, socket.socket] = {}
        try:
            for rank in ranks:
                if rank < self.rank:
                    found[rank] = self._call(mesh, rank, until)
            for rank in ranks:
                if rank > self.rank:
                    found[rank] = self._answer(mesh, rank, until)
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        return [found[r].detach() if r in found else -1 for r in ranks]

    def _answer(self, mesh: str, rank: int, until: float) -> socket.socket:
        """Return the connection that a worker of a higher rank has opened."""
        begin = said = time.monotonic()
        while True:
            connection = self._door.take(mesh, rank, _LOOK_S)
            if connection is not None:
                return connection
            now = time.monotonic()
            if now > until:
                raise WorkerError(
                    f"worker {rank} did not connect to worker {self.rank} within "
                    f"{now - begin:.0f} s"
                )
            if now - said > calling.QUIET_S:
                said = now
                log.warning("worker %d waits for worker %d to connect", self.rank, rank)

    def _call(self, mesh: str, rank: int, until: float) -> socket.socket:
        card = self.cards[rank]
        near = card.machine == self.cards[self.rank].machine and card.path

        def line(timeout_s: float) -> socket.socket:
            if not near:
                return socket.create_connection((card.host, card.port), timeout_s)
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout_s)
            try:
                connection.connect(card.path)
            except BaseException:
                connection.close()
                raise
            return connection

        greeting = proof.greet(mesh, self.rank, rank)
        try:
            return calling.call(line, self._token, greeting, until)
        except OSError as error:
            where = card.path if near else f"{card.host}:{card.port}"
            raise WorkerError(
                f"worker {self.rank} cannot reach worker {rank} at {where} ({error}): "
                f"has it ended?"
            ) from None

    def _open(self, job: SocketJob, token: bytes) -> tuple[Card, list[socket.socket]]:
        """Listen; return this worker's card, and the sockets that listen."""
        listening, path, host, port, kept = [], "", "", 0, ""
        if job.by != "tcp":
            path = str(self._folder / "door")
            near = socket.socket(socket.AF_UNIX)
            near.bind(path)
            near.listen(_BACKLOG)
            listening.append(near)
        if job.by == "tcp" or not job.one_machine:
            host = addresses.LOOPBACK if job.one_machine else _address(job)
            far = addresses.listen(host, 0, backlog=_BACKLOG)
            port = far.getsockname()[1]
            listening.append(far)
        if token:
            kept = str(self._folder / "token")
            _write_secret(kept, token)
        return Card(machine_name(), path, host, port, kept), listening


def _own_folder(within: str) -> Path:
    """Make a folder that only this user can enter, with a path that a socket can have.

    Args:
        within: in which folder; in that for temporary files if it is "".
    """
    parent = within or tempfile.gettempdir()
    if len(os.fsencode(parent)) > _MOST_PATH:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="codedgrad-", dir=parent))


def _meeting_of(job: SocketJob) -> meeting.Meeting:
    if job.rendezvous is not None:
        if not job.token:
            raise EnvironmentSetupError(f"this worker has no token; {proof.REMEDY}")
        return Guest(*job.rendezvous, job.size, token=job.token, wait_s=_JOIN_S)
    if job.folder:
        return meeting.Folder(Path(job.folder))
    if job.store is not None:
        return meeting.Store(*job.store)
    raise EnvironmentSetupError("the workers have no place where they could meet")


def _address(job: SocketJob) -> str:
    """Return the address at which other machines reach this worker."""
    place = job.rendezvous or (job.store or ("", 0))[:2]
    found = addresses.towards(*place)
    if found is None:
        raise EnvironmentSetupError(
            "this machine has no address that others could reach; set CODEDGRAD_ADDRESS"
        )
    return found


def _token_of(first: Card, mine: Card) -> bytes:
    """Return the token that worker 0 has drawn, if this worker may read it."""
    if first.machine != mine.machine or not first.token:
        raise EnvironmentSetupError(
            f"the workers run on several machines, and this one has no token; "
            f"{proof.REMEDY}"
        )
    try:
        return _read_secret(first.token)
    except OSError as error:
        raise EnvironmentSetupError(
            f"the token that worker 0 has drawn cannot be read ({error}); "
            f"{proof.REMEDY}"
        ) from None


def _write_secret(path: str, token: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, token)
    finally:
        os.close(file)


def _read_secret(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        about = os.fstat(file)
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) != 0o600:
            raise PermissionError("others than this user can read or write it")
        token = os.read(file, proof.TOKEN_BYTES)
    finally:
        os.close(file)
    if len(token) != proof.TOKEN_BYTES:
        raise OSError(f"it has {len(token)} bytes, not {proof.TOKEN_BYTES}")
    return token


_world: World | None = None


def join(job: SocketJob) -> World:
    """Return this process's world; the first call joins it. Collective."""
    global _world
    if _world is None:
        _world = World(job)
    return _world
