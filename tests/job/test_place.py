"""The numbers of a process in its job and on its machine."""

from __future__ import annotations

from typing import Any

import pytest

from codedgrad.job.place import Place, find_place


class FakeChannel:
    """The channel that process `rank` sees, where rank r runs on machine `on[r]`."""

    def __init__(self, rank: int, on: list[str], members: list[int]) -> None:
        self._on, self._members = on, members
        self.rank, self.size = members.index(rank), len(members)
        self.freed = False

    def split_by_machine(self) -> FakeChannel:
        mine = self._on[self.rank]
        members = [r for r, machine in enumerate(self._on) if machine == mine]
        self.machine = FakeChannel(self.rank, self._on, members)
        return self.machine

    def allgather(self, number: int) -> list[int]:
        del number  # what each process would give: its rank, or its machine's first
        if len(self._members) < len(self._on):
            return self._members
        return [self._on.index(machine) for machine in self._on]

    def free(self) -> None:
        self.freed = True


@pytest.mark.parametrize(
    ("on", "rank", "numbers"),
    [
        ("aabb", 0, (0, 4, 0, 2, 0, 2)),
        ("aabb", 3, (3, 4, 1, 2, 1, 2)),
        ("baba", 2, (2, 4, 1, 2, 0, 2)),  # machines count by their first ranks
        ("baba", 3, (3, 4, 1, 2, 1, 2)),
        ("abcc", 3, (3, 4, 1, 2, 2, 3)),
    ],
)
def test_places(on: str, rank: int, numbers: tuple[int, ...]) -> None:
    channel: Any = FakeChannel(rank, list(on), list(range(len(on))))
    assert find_place(channel) == Place(*numbers)
    assert channel.machine.freed
