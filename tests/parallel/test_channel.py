"""A channel's collectives among any number of workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import codedgrad
from codedgrad.job import runtime

if TYPE_CHECKING:
    from codedgrad.job.channel import Channel, Request


def finish(*requests: Request) -> None:
    end = time.monotonic() + 30.0
    for request in requests:
        while not request.test():
            assert time.monotonic() < end


@pytest.fixture
def channel() -> Channel:
    return runtime.current().channel


def test_it_has_all_workers(channel: Channel) -> None:
    assert (channel.rank, channel.size) == (codedgrad.rank(), codedgrad.size())
    assert channel.allgather(10 * channel.rank) == [
        10 * worker for worker in range(channel.size)
    ]


def test_a_broadcast_takes_the_roots_values(channel: Channel) -> None:
    for root in range(channel.size):
        data = np.full(1000, channel.rank)
        finish(channel.start_broadcast(data, root))
        assert (data == root).all()


def test_several_collectives_at_a_time(channel: Channel) -> None:
    n = channel.size
    mine, every = np.array([channel.rank, -1]), np.zeros((n, 2), np.int64)
    data = np.array([channel.rank])
    finish(
        channel.start_barrier(),
        channel.start_broadcast(data, n - 1),
        channel.start_allgather(mine, every),
    )
    assert data[0] == n - 1
    assert every.tolist() == [[worker, -1] for worker in range(n)]


def test_a_barrier_waits_for_the_last(channel: Channel) -> None:
    if channel.size == 1:
        return
    if channel.rank == channel.size - 1:
        time.sleep(0.2)
    begin = time.monotonic_ns()  # one clock for all processes of a machine
    finish(channel.start_barrier())
    end = time.monotonic_ns()
    assert end >= max(channel.allgather(begin))


def test_a_channel_of_some_ranks_in_their_order(channel: Channel) -> None:
    n = channel.size
    ranks = list(range(0, n, 2))
    if channel.rank not in ranks:
        return  # it is collective over those ranks only
    some = channel.of_ranks(ranks)
    assert (some.rank, some.size) == (ranks.index(channel.rank), len(ranks))
    assert some.allgather(channel.rank) == ranks
    some.free()


def test_this_machine_has_all_workers(channel: Channel) -> None:
    machine = channel.split_by_machine()
    assert (machine.rank, machine.size) == (channel.rank, channel.size)
    machine.free()
    assert (codedgrad.local_rank(), codedgrad.local_size()) == (
        codedgrad.rank(),
        codedgrad.size(),
    )


def test_a_copy_does_not_meet_what_the_original_sends(channel: Channel) -> None:
    copy = channel.duplicate()
    assert copy is not channel
    first, second = np.array([channel.rank]), np.array([channel.rank + 100])
    requests = [channel.start_broadcast(first, 0), copy.start_broadcast(second, 0)]
    finish(*reversed(requests))
    assert (first[0], second[0]) == (0, 100)
    copy.free()
