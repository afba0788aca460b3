"""Addresses that do not fit the transport's tags, and many models in one process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 30.0
BITS = {15: (1 << 15) - 1, 23: (1 << 23) - 1, 31: (1 << 31) - 1}
SHORT = 8  # sessions that may have short addresses


def settings_of(code: codes.Code, starts: list[int], window: int = 4) -> Any:
    tree = code.tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    return _engine.SessionSettings(plan=plan, bucket_starts=starts, window=window)


def meet(engine: Any) -> None:
    engine.publish(b"")
    while engine.gather(1.0)[0] is None:
        pass


class Model:
    """One model of one worker: its exchange, and rows whose sum is known."""

    def __init__(
        self, engine: Any, code: codes.Code, number: int, count: int, **settings: Any
    ) -> None:
        self.engine, self.code, self.number, self.count = engine, code, number, count
        starts = [*range(0, count, 300), count]
        self.exchange = _engine.Exchange(engine, settings_of(code, starts, **settings))

    def values(self, step: int, worker: int) -> np.ndarray:
        """They tell worker, position, step and model."""
        at = np.arange(self.count)
        values = (at * (worker + 1) + 17 * step + 31 * self.number) % 1009
        return values.astype(np.float32)

    def post(self, step: int) -> None:
        assert self.exchange.begin(step, TIMEOUT_S)[0]
        data = self.exchange.acquire()
        worker = self.engine.rank
        np.frombuffer(data, np.float32)[:] = self.values(step, worker)
        self.exchange.post(step, self.code.row_node(worker, 0), data)

    def check(self, step: int) -> None:
        assert self.exchange.wait(step, TIMEOUT_S)
        got = np.frombuffer(self.exchange.take(step), np.float32)
        want = sum(self.values(step, w) for w in range(self.code.workers))
        np.testing.assert_array_equal(got, want)


@pytest.fixture
def run() -> Iterator[Callable[..., list[Any]]]:
    """Runs a function with every worker's engine, each in a thread of its own."""
    engines: list[Any] = []

    def start(workers: int, bits: int, body: Callable[[Any], Any]) -> list[Any]:
        hub = _engine.LocalHub(workers, 200, 3, BITS[bits])
        mine = [_engine.Engine.over_local(hub, rank) for rank in range(workers)]
        engines.extend(mine)
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(body, mine, timeout=3 * TIMEOUT_S))

    yield start
    with ThreadPoolExecutor(max(1, len(engines))) as pool:
        stopped = list(pool.map(lambda e: e.stop(5.0), engines))
    assert all(stopped)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize(
    ("bits", "window", "wide"), [(15, 4, True), (23, 4000, True), (31, 4, False)]
)
def test_sums_are_right(
    run: Any, bits: int, workers: int, window: int, wide: bool
) -> None:
    """Rows, results and progress all come late and in another order of workers."""
    code = codes.uncoded(workers)

    def body(engine: Any) -> None:
        model = Model(engine, code, 0, 20_000, window=window)
        assert model.exchange.long_addresses == wide
        meet(engine)
        for step in range(12):
            model.post(step)
            if engine.rank == step % workers:
                time.sleep(0.003)  # the others are steps ahead
            model.check(step)

    run(workers, bits, body)


def test_short_and_long_addresses_side_by_side(run: Any) -> None:
    code = codes.spread(3, micro=2)

    def body(engine: Any) -> list[bool]:
        models = [Model(engine, code, i, size) for i, size in enumerate((40, 30_000))]
        meet(engine)
        for step in range(20):
            for model in models:
                model.post(step)
            for model in reversed(models):
                model.check(step)
        return [m.exchange.long_addresses for m in models]

    assert run(3, 15, body) == [[False, True]] * 3


def test_many_models_at_once(run: Any) -> None:
    code = codes.uncoded(3)

    def body(engine: Any) -> int:
        models = [Model(engine, code, i, 100 + i) for i in range(70)]
        meet(engine)
        for step in range(3):
            for model in models:
                model.post(step)
            for model in models:
                model.check(step)
        for model in models:
            model.exchange.close()
        meet(engine)
        again = Model(engine, code, 0, 50)
        assert not again.exchange.long_addresses  # numbers are used again
        return sum(m.exchange.long_addresses for m in models)

    assert run(3, 31, body) == [70 - SHORT] * 3


def test_dropped_models_give_their_memory_back(run: Any) -> None:
    """Garbage collectors run when they like; a worker's model serves the last one."""
    code = codes.uncoded(3)

    def body(engine: Any) -> tuple[int, int]:
        most = 0
        for number in range(40):
            model = Model(engine, code, number, 50_000)
            meet(engine)
            model.post(0)
            if engine.rank == number % 3:
                time.sleep(0.005)  # the others have dropped theirs
            model.check(0)
            del model
            most = max(most, engine.stats().pool_bytes)
        meet(engine)
        until = time.monotonic() + TIMEOUT_S
        while engine.stats().sessions > 0 and time.monotonic() < until:
            time.sleep(0.01)
        return engine.stats().sessions, most

    for sessions, most in run(3, 31, body):
        assert sessions == 0
        assert most < 20 * 4 * 50_000


@pytest.mark.parametrize("bits", [15, 23])
def test_4096_workers_and_5_gb_fit(bits: int) -> None:
    """Buckets of 1 MiB are far more than the rule of `row.cuts` would make."""
    workers, bucket, count = 4096, 1 << 18, 5 * 10**9 // 4
    hub = _engine.LocalHub(workers, 0, 0, BITS[bits])
    engine = _engine.Engine.over_local(hub, 0)
    code = codes.spread(workers)
    starts = [*range(0, count, bucket), count]
    exchange = _engine.Exchange(engine, settings_of(code, starts, window=16))
    assert exchange.long_addresses
    engine.stop(0.0)
