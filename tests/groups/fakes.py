"""Processes of a group as threads, with an MPI and a job in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from job.fakes import fake_runtime

from codedgrad.groups.channel import GroupChannel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from codedgrad.job.runtime import Runtime

T = TypeVar("T")
PATIENT_S = 20.0


class FakeCollectives:
    """The channel of `size` threads; process `rank`'s view of what they share."""

    def __init__(self, rank: int, shared: list[Any], meet: Barrier) -> None:
        self.rank, self._shared, self._meet = rank, shared, meet

    def of_ranks(self, ranks: list[int]) -> FakeCollectives:
        assert ranks == list(range(len(self._shared)))
        return self

    def all_of(self, mine: Any) -> list[Any]:
        self._shared[self.rank] = mine
        self._meet.wait(PATIENT_S)
        every = list(self._shared)
        self._meet.wait(PATIENT_S)
        return every

    def start_broadcast(self, data: NDArray[Any], root: int) -> Any:
        data[:] = self.all_of(data.copy())[root]
        return SimpleNamespace(test=lambda: True)

    def start_allgather(self, mine: NDArray[Any], every: NDArray[Any]) -> Any:
        every[:] = np.concatenate(self.all_of(mine.copy()))
        return SimpleNamespace(test=lambda: True)


def fake_job(channel: FakeCollectives, size: int) -> Runtime:
    """The job of one group, as process `channel.rank` sees it."""
    published: list[bytes] = []
    return fake_runtime(
        size,
        rank=channel.rank,
        channel=channel,
        publish=published.append,
        gather=lambda _: (channel.all_of(published[-1]), []),
    )


def together(size: int, work: Callable[[GroupChannel], T]) -> list[T]:
    """Do the work as every process of a group; what each returns."""
    shared: list[Any] = [None] * size
    meet = Barrier(size)

    def member(rank: int) -> T:
        job = fake_job(FakeCollectives(rank, shared, meet), size)
        connection: Any = SimpleNamespace(peers=list(range(size)), group=None)
        return work(GroupChannel(job, list(range(size)), connection))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(member, range(size)))
