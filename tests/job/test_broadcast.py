"""Broadcasts that are given up leave MPI the memory that it may still write."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from job.fakes import fake_runtime

from codedgrad.errors import WorkerError
from codedgrad.job import broadcast
from codedgrad.job.channel import MpiChannel, MpiRequest


class SlowMpi:
    """A communicator whose broadcasts end when the test says so."""

    def __init__(self) -> None:
        self.done = False
        self.array: Any = None

    def Get_rank(self) -> int:
        return 1

    def Get_size(self) -> int:
        return 2

    def Ibcast(self, data: Any, root: int) -> Any:
        del root
        self.array = weakref.ref(data)
        return SimpleNamespace(Test=lambda: self.done)


def test_a_broadcast_that_is_given_up_keeps_its_memory() -> None:
    mpi = SlowMpi()
    channel: Any = MpiChannel(mpi)  # type: ignore[arg-type]
    runtime = fake_runtime(
        2, rank=1, channel=channel, failed=True, failure="worker 0 has no more disk"
    )
    with pytest.raises(WorkerError, match="no more disk"):
        broadcast.broadcast_bytes(runtime, torch.zeros(64, dtype=torch.uint8), 0, "w")
    gc.collect()
    assert mpi.array() is not None  # MPI may write it
    mpi.done = True
    assert all(request.test() for request in list(MpiRequest._under_way))
    gc.collect()
    assert mpi.array() is None
