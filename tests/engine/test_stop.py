"""What `Engine.stop` returns: whether everybody has left, and nothing is under way."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from codedgrad.job import _engine


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_leave_together(size: int, failed: bool) -> None:
    hub = _engine.LocalHub(size)
    engines = [_engine.Engine.over_local(hub, rank) for rank in range(size)]
    if failed:
        engines[0].fail("worker 0 failed: disk full")
    with ThreadPoolExecutor(size) as pool:
        assert all(pool.map(lambda engine: engine.stop(5.0), engines))
    assert all(engine.stop(5.0) for engine in engines)  # says the same again


@pytest.mark.parametrize("failed", [False, True])
def test_a_worker_that_has_not_said_goodbye_is_missed(failed: bool) -> None:
    """It may never come to MPI_Finalize, although nothing is under way."""
    hub = _engine.LocalHub(3)
    engines = [_engine.Engine.over_local(hub, rank) for rank in range(3)]
    if failed:
        engines[0].fail("worker 0 gave up")
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        assert not any(pool.map(lambda engine: engine.stop(0.5), engines[:2]))
    assert time.monotonic() - begin < 5.0
    assert not engines[0].stop(0.5)
    engines[2].stop(0.0)
