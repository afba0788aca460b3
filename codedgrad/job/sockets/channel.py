"""The channel over sockets; `codedgrad.job.channel.Channel` describes its calls."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.job.sockets.collective import Mesh, SocketRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from codedgrad.job.sockets.world import World

_NAP_S = 1e-3


class SocketChannel:
    """Some workers of a job over sockets, and this one among them.

    They are connected at the first call that needs it.

    Args:
        world: this process among all workers.
        name: of the channel, which no other one has, and which all its workers use.
        ranks: its workers, by their ranks in the job.
    """

    def __init__(self, world: World, name: str, ranks: Sequence[int]) -> None:
        self.world, self._name, self._ranks = world, name, list(ranks)
        self.rank: int = self._ranks.index(world.rank)
        self.size: int = len(self._ranks)
        self._made: dict[str, int] = {}  # channels from this one, by their kind
        self._joined: Mesh | None = None

    @classmethod
    def of_job(cls, world: World) -> SocketChannel:
        """Return a new channel of all workers."""
        return cls(world, world.next_name(), range(world.size))

    # ---- at the start; these calls block ----

    def duplicate(self) -> SocketChannel:
        """Return a channel of the same processes, with connections of its own."""
        return self._another("copy", self._ranks)

    def split_by_machine(self) -> SocketChannel:
        """Return a channel of those processes whose cards name this machine."""
        cards = self.world.cards
        here = cards[self.world.rank].machine
        return self._another(
            "machine", [r for r in self._ranks if cards[r].machine == here]
        )

    def of_ranks(self, ranks: Sequence[int]) -> SocketChannel:
        """Return a channel of these ranks, in this order. Collective over them."""
        return self._another("ranks", [self._ranks[r] for r in ranks])

    def start_engine(self, max_tag: int) -> Any:
        """Return an engine over connections of its own."""
        from codedgrad.job import _engine

        fds = self.world.connect(f"{self._name}, engine", self._ranks)
        return _engine.Engine.over_sockets(self.rank, fds, max_tag)

    def start_transport(self) -> Any:
        """Return a transport over connections of its own."""
        from codedgrad.job import _engine

        fds = self.world.connect(f"{self._name}, messages", self._ranks)
        return _engine.sockets_transport(self.rank, fds)

    def allgather(self, number: int) -> list[int]:
        """Return the number that each process gives, in order of their ranks."""
        every = np.zeros(self.size, np.int64)
        request = self.start_allgather(np.array([number]), every)
        while not request.test():
            time.sleep(_NAP_S)
        return list(map(int, every))

    def free(self) -> None:
        """Close the connections."""
        self._joined = None

    # ---- in the job; these calls return at once ----

    def start_broadcast(self, data: NDArray[Any], root: int) -> SocketRequest:
        """Begin to copy the root's `data` into the `data` of all others."""
        return SocketRequest(self._mesh()).broadcast(data, root)

    def start_allgather(self, mine: NDArray[Any], every: NDArray[Any]) -> SocketRequest:
        """Begin to collect each process's `mine`, in order of ranks, in `every`."""
        return SocketRequest(self._mesh()).allgather(mine, every)

    def start_barrier(self) -> SocketRequest:
        """Begin a barrier: it is complete when all processes have begun it."""
        nothing = np.zeros((self.size, 0), np.uint8)
        return SocketRequest(self._mesh()).allgather(nothing[0], nothing)

    # ---- beside ----

    def mark_survivor(self) -> bool:
        """Let the supervisor know, if there is one; return True."""
        if self.world.marks is not None:
            self.world.marks.set(self.world.rank)
        return True

    def unmark_survivor(self, lost: Sequence[int], *, well: bool) -> None:
        """Let the supervisor know, if there is one."""
        if self.world.marks is not None:
            self.world.marks.clear(self.world.rank, lost, well=well)

    def reads_cuda_memory(self) -> bool:
        """Return False: sockets take the memory of the processor."""
        return False

    def abort(self, status: int) -> None:
        """End this process at once; whoever started it ends the others."""
        self.world.clean_up()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _mesh(self) -> Mesh:
        if self._joined is None:
            from codedgrad.job import _engine

            fds = self.world.connect(self._name, self._ranks)
            self._joined = Mesh(_engine.sockets_transport(self.rank, fds))
        return self._joined

    def _another(self, kind: str, ranks: list[int]) -> SocketChannel:
        """Return a channel with a name that all its processes give it."""
        kind = f"{kind} {ranks}"
        self._made[kind] = self._made.get(kind, 0) + 1
        name = f"{self._name}, {kind} #{self._made[kind]}"
        return SocketChannel(self.world, name, ranks)
