"""The engine in one process: workers are threads, messages come late and disordered."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Setting:
    """Of a hub and the sessions on it."""

    delay_us: int = 200  # of messages, at most
    count: int = 1000  # elements of a row
    dtype: Any = np.float32

    @property
    def starts(self) -> list[int]:
        return [*range(0, self.count, 300), self.count]


class Worker:
    """What a worker does with its engine, in numpy."""

    def __init__(self, engine: Any, code: codes.Code, setting: Setting) -> None:
        self.engine, self.code, self.rank = engine, code, engine.rank
        self.dtype, self.count = np.dtype(setting.dtype), setting.count
        if code.linear:
            plan = _engine.linear_plan(code.matrix(), code.workers - code.tolerance())
        else:
            tree = code.tree
            plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
        settings = _engine.SessionSettings(
            plan=plan, bucket_starts=setting.starts, dtype=self.dtype.name, window=4
        )
        self.exchange = _engine.Exchange(engine, settings)
        # As every user of the engine does: nobody sends before all are open.
        engine.publish(b"open")
        while engine.gather(1.0)[0] is None:
            pass

    def payload(self, step: int, part: int) -> np.ndarray:
        values = (np.arange(self.count) * (part + 1) + step) % 251
        return values.astype(self.dtype)

    def truth(self, step: int) -> np.ndarray:
        return sum(self.payload(step, p) for p in range(self.code.parts))

    def post(self, step: int, row: int) -> None:
        """Compute and send one row of this worker."""
        spec = self.code.rows[self.rank][row]
        total = np.zeros(self.count, self.dtype)
        for item, c in zip(spec.items, spec.coefficients, strict=True):
            node = self.code.work[self.rank][item]
            for part in range(self.code.tree.start[node], self.code.tree.stop[node]):
                total += self.dtype.type(c) * self.payload(step, part)
        data = self.exchange.acquire()
        np.frombuffer(data, self.dtype)[:] = total
        number = (
            self.code.row_index(self.rank, row)
            if self.code.linear
            else self.code.row_node(self.rank, row)
        )
        self.exchange.post(step, number, data)

    def begin(self, step: int) -> None:
        assert self.exchange.begin(step, TIMEOUT_S)[0]

    def finish(self, step: int) -> np.ndarray:
        assert self.exchange.wait(step, TIMEOUT_S)
        return np.frombuffer(self.exchange.take(step), self.dtype)

    def check(self, step: int) -> None:
        got, want = self.finish(step), self.truth(step)
        if self.code.linear:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-2)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.fixture
def run() -> Iterator[Callable[..., list[Any]]]:
    """Runs a function on every worker of a fresh hub, each in a thread of its own."""
    engines: list[Any] = []

    def start(
        code: codes.Code, body: Callable[[Worker], Any], **setting: Any
    ) -> list[Any]:
        chosen = Setting(**setting)
        hub = _engine.LocalHub(code.workers, chosen.delay_us, 1)
        mine = [_engine.Engine.over_local(hub, r) for r in range(code.workers)]
        engines.extend(mine)

        def one(engine: Any) -> Any:
            return body(Worker(engine, code, chosen))

        with ThreadPoolExecutor(len(mine)) as pool:
            return list(pool.map(one, mine, timeout=2 * TIMEOUT_S))

    yield start
    with ThreadPoolExecutor(max(1, len(engines))) as pool:
        list(pool.map(lambda e: e.stop(5.0), engines))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "code",
    [
        codes.uncoded(1),
        codes.uncoded(5),
        codes.spread(2, micro=2),
        codes.spread(3, micro=2),
        codes.scheduled(4, order="staircase"),
        codes.fractional(6, copies=3),
        codes.cyclic(5, stragglers=2),
    ],
    ids=lambda c: c.describe(),
)
def test_sums_are_right(run: Any, code: codes.Code, dtype: Any) -> None:
    def body(worker: Worker) -> None:
        for step in range(20):
            worker.begin(step)
            for row in range(code.required[worker.rank] if not code.linear else 1):
                if not worker.exchange.done(step):
                    worker.post(step, row)
            worker.check(step)

    run(code, body, dtype=dtype)


@pytest.mark.parametrize("count", [48, 100_003])
def test_tiny_and_large(run: Any, count: int) -> None:
    def body(worker: Worker) -> None:
        for step in range(3):
            worker.begin(step)
            worker.post(step, 0)
            worker.check(step)

    run(codes.uncoded(3), body, count=count)


def test_backups_stand_in_for_a_missing_row(run: Any) -> None:
    code = codes.spread(4, micro=2, copies=1)

    def body(worker: Worker) -> None:
        worker.begin(0)
        if worker.rank == 3:
            return worker.check(0)  # never sends its own row
        for row in range(len(code.rows[worker.rank])):
            worker.post(0, row)
        return worker.check(0)

    run(code, body)


def test_every_row_twice_or_late_changes_nothing(run: Any) -> None:
    """All rows of all workers, some after the step is decoded."""
    code = codes.spread(4, micro=2, copies=2)

    def body(worker: Worker) -> Any:
        rng = np.random.default_rng(worker.rank)
        for step in range(30):
            worker.begin(step)
            for row in rng.permutation(len(code.rows[worker.rank])).tolist():
                worker.post(step, row)
            worker.check(step)
        return worker.exchange.counters()

    counters = run(code, body)
    assert sum(c.rows_redundant + c.rows_late for c in counters) > 0


def test_a_worker_that_lags_fast_forwards(run: Any) -> None:
    code = codes.fractional(4, copies=2)
    released = threading.Event()

    def body(worker: Worker) -> int:
        skipped = 0
        if worker.rank == 3:
            assert released.wait(TIMEOUT_S)
            assert worker.exchange.wait(
                3, TIMEOUT_S
            )  # the last results are on their way
        for step in range(4):
            worker.begin(step)
            skipped += worker.exchange.done(step)
            if not worker.exchange.done(step):
                worker.post(step, 0)
            worker.check(step)
            if worker.rank == 0 and step == 3:
                released.set()
        return skipped

    assert run(code, body)[3] == 4


def test_the_window_holds_the_others_and_names_the_worker(run: Any) -> None:
    code = codes.fractional(4, copies=2)
    held = threading.Barrier(3)

    def body(worker: Worker) -> Any:
        behind: list[int] = []
        if worker.rank == 3:
            worker.begin(0)
            held.wait(TIMEOUT_S)  # two others have met the window's end
        for step in range(worker.rank == 3, 9):
            ok, who = worker.exchange.begin(step, 0.3 if worker.rank < 2 else 30.0)
            if not ok:
                behind = who
                held.wait(TIMEOUT_S)
                worker.begin(step)
            if not worker.exchange.done(step):
                worker.post(step, 0)
            worker.check(step)
        return behind

    # Worker 2 holds nobody: it is waited for at the window's end like 0 and 1.
    results = run(code, lambda w: body(w))
    assert results[0] == [3]
    assert results[1] == [3]


def test_an_error_ends_every_wait(run: Any) -> None:
    def body(worker: Worker) -> str:
        worker.begin(0)
        if worker.rank == 1:
            time.sleep(0.05)
            worker.engine.fail("worker 1 has no more disk")
        with pytest.raises(_engine.EngineFailure) as caught:
            worker.exchange.wait(0, TIMEOUT_S)
        return str(caught.value)

    assert set(run(codes.uncoded(3), body)) == {"worker 1 has no more disk"}


def test_gather_is_in_the_order_of_workers(run: Any) -> None:
    def body(worker: Worker) -> Any:
        got = []
        for turn in range(20):
            worker.engine.publish(f"{worker.rank} {turn}".encode())
            blobs = None
            while blobs is None:
                blobs, _ = worker.engine.gather(1.0)
            got.append(blobs)
        return got

    for got in run(codes.uncoded(5), body):
        for turn, blobs in enumerate(got):
            assert blobs == [f"{r} {turn}".encode() for r in range(5)]


def test_waits_end_in_time_and_memory_is_used_again(run: Any) -> None:
    waited = threading.Event()

    def body(worker: Worker) -> Any:
        worker.begin(0)
        if worker.rank == 1:
            assert waited.wait(TIMEOUT_S)
        worker.post(0, 0)
        if worker.rank == 0:
            begin = time.monotonic()
            assert not worker.exchange.wait(0, 0.05)
            assert time.monotonic() - begin < 5.0
            assert worker.exchange.missing(0) == [0, 1]
            waited.set()
        worker.check(0)
        sizes = []
        for step in range(1, 200):
            worker.begin(step)
            worker.post(step, 0)
            worker.check(step)
            sizes.append(worker.engine.stats().pool_bytes)
        return sizes

    for sizes in run(codes.uncoded(2), body, delay_us=0):
        # Which buffers are out at once depends on the moment, so the pool may
        # still grow by one; one lost in every step would be ten times as much.
        assert max(sizes[100:]) <= 2 * max(sizes[:100])


@pytest.mark.parametrize(
    ("starts", "window", "message"),
    [([0], 4, "bucket"), ([0, 100], 0, "window"), ([5, 3], 4, "bucket")],
)
def test_bad_settings(starts: list[int], window: int, message: str) -> None:
    hub = _engine.LocalHub(1, 0, 0)
    engine = _engine.Engine.over_local(hub, 0)
    tree = codes.uncoded(1).tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    with pytest.raises(ValueError, match=message):
        _engine.Exchange(
            engine,
            _engine.SessionSettings(plan=plan, bucket_starts=starts, window=window),
        )
    assert engine.stop(5.0)
