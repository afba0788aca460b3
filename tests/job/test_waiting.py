"""A wait that has to end says the job's first failure, not what followed from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from codedgrad import WorkerError
from codedgrad.job.runtime import Runtime, Waiting


def waiting(*, failure: str, departed: list[int]) -> tuple[Waiting, list[str]]:
    """A wait of 6 of 10 s; what it tells the others."""
    told: list[str] = []
    engine: Any = SimpleNamespace(
        failed=bool(failure),
        failure=failure,
        departed=departed,
        announced=dict,
        fail=told.append,
    )
    runtime = Runtime(
        comm=None,
        engine=engine,
        rank=0,
        size=3,
        local_rank=0,
        local_size=3,
        timeout_s=10.0,
    )
    wait = Waiting(runtime, "in step 1", quiet_s=60.0)
    wait.begin -= 6.0
    return wait, told


def test_who_has_left_for_a_reason_has_it_told() -> None:
    # The error and the goodbye may both come between two looks.
    wait, told = waiting(failure="worker 2 failed: disk full", departed=[2])
    with pytest.raises(WorkerError, match="worker 2 failed: disk full"):
        wait.tick([2])
    assert told == []


def test_who_has_left_without_one_is_named() -> None:
    wait, told = waiting(failure="", departed=[2])
    with pytest.raises(WorkerError, match=r"worker\(s\) \[2\] have left the job"):
        wait.tick([2])
    assert len(told) == 1


def test_nobody_who_has_left_is_waited_for() -> None:
    wait, _ = waiting(failure="", departed=[1])
    wait.tick([2])
    wait.begin -= 5.0
    with pytest.raises(WorkerError, match=r"nothing came from worker\(s\) 2 for 11 s"):
        wait.tick([2])
