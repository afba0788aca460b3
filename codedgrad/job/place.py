"""Where a process stands: its number in the job and on its machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codedgrad.job.channel import Channel


@dataclass(frozen=True)
class Place:
    """The numbers of one process; Horovod's names for them.

    Attributes:
        rank: its number in the job.
        size: processes in the job.
        local_rank: its number on its machine.
        local_size: processes on its machine.
        cross_rank: the number of its machine, counted by the machines' first ranks.
        cross_size: machines in the job.
    """

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1
    cross_rank: int = 0
    cross_size: int = 1


def find_place(job: Channel) -> Place:
    """Find out where the processes of the job run. Collective."""
    machine = job.split_by_machine()
    # A machine is known by the first of its processes.
    first = machine.allgather(job.rank)[0]
    firsts = sorted(set(job.allgather(first)))
    place = Place(
        rank=job.rank,
        size=job.size,
        local_rank=machine.rank,
        local_size=machine.size,
        cross_rank=firsts.index(first),
        cross_size=len(firsts),
    )
    machine.free()
    return place
