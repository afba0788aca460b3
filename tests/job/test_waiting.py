"""A wait that has to end says the job's first failure, not what followed from it."""

from __future__ import annotations

import logging

import pytest
from job.fakes import fake_runtime

from codedgrad import WorkerError
from codedgrad.job.waiting import Waiting


def waiting(failure: str = "", departed: tuple[int, ...] = ()) -> Waiting:
    """A wait of worker 0 that has taken 6 of its 10 s."""
    runtime = fake_runtime(failed=bool(failure), failure=failure, departed=departed)
    wait = Waiting(runtime, "in step 1", quiet_s=60.0)
    wait.begin -= 6.0
    return wait


def test_who_has_left_for_a_reason_has_it_told() -> None:
    # The error and the goodbye may both come between two looks.
    wait = waiting("worker 2 failed: disk full", departed=(2,))
    with pytest.raises(WorkerError, match="worker 2 failed: disk full"):
        wait.tick([2])
    assert wait.job.engine.said == []


def test_who_has_left_without_one_is_named() -> None:
    wait = waiting(departed=(2,))
    with pytest.raises(WorkerError, match=r"worker\(s\) \[2\] have left the job"):
        wait.tick([2])
    assert len(wait.job.engine.said) == 1


def test_nobody_who_has_left_is_waited_for() -> None:
    wait = waiting(departed=(1,))
    wait.tick([2])
    wait.begin -= 5.0
    with pytest.raises(WorkerError, match=r"nothing came from worker\(s\) 2 for 11 s"):
        wait.tick([2])


def test_the_log_says_for_whom_and_what_those_wait_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = fake_runtime(announced=lambda: {2: b"in step 7\0data"})
    wait = Waiting(runtime, "in step 9", quiet_s=0.0)
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        wait.tick([1, 2])
        wait.tick([1])  # within the same second: not again
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "worker 0 waits in step 9 for worker(s) 1, 2 (which waits in step 7), "
        "0 s so far"
    ]
