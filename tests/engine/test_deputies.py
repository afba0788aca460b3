"""Deputies in one process: workers whose engines stand still, at every awkward moment.

Some ranks are engines, driven as a step drives them; the others are *ghosts*: bare
transports that have sent this or that before they stood still for good, and take
nothing any more. The others must go on, all with the true sums.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.job import _engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STARTS = [0, 128, 256]
COUNT, WINDOW = STARTS[-1], 4
ROW, RESULT, PROGRESS = range(3)
LIMIT_S = 30.0
LAST_RESORT = 3


def bits(values: int) -> int:
    return (values - 1).bit_length()


def payload(step: int, part: int) -> np.ndarray:
    return ((np.arange(COUNT) * (part + 1) + step) % 61).astype(np.float32)


def row_of(code: codes.Code, step: int, node: int) -> np.ndarray:
    span = range(int(code.tree.start[node]), int(code.tree.stop[node]))
    return sum(payload(step, p) for p in span) + np.zeros(COUNT, np.float32)


def truth(code: codes.Code, step: int) -> np.ndarray:
    return row_of(code, step, code.tree.root)


class Ghost:
    """A rank that sends what it is told to, and takes nothing."""

    def __init__(self, hub: Any, code: codes.Code, rank: int) -> None:
        self.transport = _engine.local_transport(hub, rank)
        self.code, self.rank = code, rank
        self.memory: list[np.ndarray] = []

    def slice(self, bucket: int, owner: int) -> slice:
        first, stop = STARTS[bucket : bucket + 2]
        each = -(-(stop - first) // self.code.workers)
        grain = -(-each // 16) * 16
        return slice(
            min(stop, first + grain * owner), min(stop, first + grain * (owner + 1))
        )

    def send(
        self, dest: int, kind: int, step: int, data: np.ndarray, **place: int
    ) -> None:
        nodes = len(self.code.tree.left)
        tag = step % (1 << bits(2 * WINDOW + 2))
        tag = (tag << bits(len(STARTS) - 1)) | place.get("bucket", 0)
        tag = (tag << bits(nodes)) | place.get("row", 0)
        data = np.ascontiguousarray(data)
        if data.size == 0:
            return
        self.memory.append(data)
        bare = data.view(np.uint8)
        self.transport.send(dest, (tag << 5) | kind, bare, len(self.memory))

    def row(self, dest: int, step: int, buckets: tuple[int, ...] = (0, 1)) -> None:
        node = self.code.work[self.rank][0]
        row = row_of(self.code, step, node)
        for b in buckets:
            where = self.slice(b, dest)
            self.send(dest, ROW, step, row[where], bucket=b, row=node)

    def result(self, dest: int, step: int, buckets: tuple[int, ...] = (0, 1)) -> None:
        total = truth(self.code, step)
        for b in buckets:
            where = self.slice(b, self.rank)
            self.send(dest, RESULT, step, total[where], bucket=b)


class Worker:
    """What a step does with its engine, in numpy."""

    def __init__(
        self,
        engine: Any,
        code: codes.Code,
        deputy_s: float,
        window: int,
        **more: str,
    ) -> None:
        self.code, self.rank, self.engine = code, engine.rank, engine
        tree = code.tree
        plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
        self.exchange = _engine.Exchange(
            engine,
            _engine.SessionSettings(
                plan=plan,
                bucket_starts=STARTS,
                window=window,
                deputy_s=deputy_s,
                **more,
            ),
        )

    def post(self, step: int, node: int) -> None:
        data = self.exchange.acquire()
        np.frombuffer(data, np.float32)[:] = row_of(self.code, step, node)
        self.exchange.post(step, node, data)

    def step(self, step: int) -> None:
        """Own row, then help, as `HelpWork` does; compare the sum with the truth."""
        assert self.exchange.begin(step, LIMIT_S)[0]
        own, *listed = self.code.work[self.rank]
        self.post(step, own)
        until, seen = time.monotonic() + LIMIT_S, 0
        while not self.exchange.wait(step, 0.005, seen):
            assert time.monotonic() < until, self.exchange.missing(step)
            seen = self.exchange.needs(step)
            nodes = list(listed)
            if seen >= LAST_RESORT:
                nodes += range(self.code.parts)
            for node in nodes:
                if not self.exchange.has(step, node):
                    self.post(step, node)
        got = np.frombuffer(self.exchange.take(step), np.float32)
        np.testing.assert_array_equal(got, truth(self.code, step))
        got += 1.0  # as a user who clips the gradients; nobody else may see it

    def counters(self) -> Any:
        return self.exchange.counters()


class Job:
    """Engines and ghosts on one hub."""

    def __init__(self, code: codes.Code, ghosts: int = 0, **hub: int) -> None:
        self.hub = _engine.LocalHub(code.workers, **hub)
        living = code.workers - ghosts
        self.engines = [_engine.Engine.over_local(self.hub, r) for r in range(living)]
        self.ghosts = [Ghost(self.hub, code, r) for r in range(living, code.workers)]
        self.code = code

    def run(
        self,
        body: Callable[[Worker], Any],
        *,
        deputy_s: float = 0.005,
        window: int = WINDOW,
    ) -> list[Any]:
        workers = [Worker(e, self.code, deputy_s, window) for e in self.engines]
        with ThreadPoolExecutor(len(workers)) as pool:
            return list(pool.map(body, workers, timeout=4 * LIMIT_S))

    def stop(self) -> None:
        wait_s = 0.05 if self.ghosts else 10.0
        with ThreadPoolExecutor(len(self.engines)) as pool:
            clean = list(pool.map(lambda e: e.stop(wait_s), self.engines))
        assert self.ghosts or all(clean)


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(*args: Any, **more: int) -> Job:
        jobs.append(Job(*args, **more))
        return jobs[-1]

    yield make
    for each in jobs:
        each.stop()


def nothing(_: list[Ghost]) -> None:
    """They stood still before they sent anything."""


def a_row_to_one(ghosts: list[Ghost]) -> None:
    for i, ghost in enumerate(ghosts):
        ghost.row(i, 0)  # each to another one: nobody has all of them


def half_a_row(ghosts: list[Ghost]) -> None:
    for ghost in ghosts:
        for dest in range(2):
            ghost.row(dest, 0, buckets=(0,))


def rows_and_no_result(ghosts: list[Ghost]) -> None:
    for ghost in ghosts:
        for dest in range(ghost.code.workers - len(ghosts)):
            ghost.row(dest, 0)


def a_result_to_one(ghosts: list[Ghost]) -> None:
    """That one goes on, and cannot help the others any more."""
    rows_and_no_result(ghosts)
    for ghost in ghosts:
        ghost.result(0, 0)


def a_result_in_part(ghosts: list[Ghost]) -> None:
    rows_and_no_result(ghosts)
    for ghost in ghosts:
        ghost.result(0, 0, buckets=(0,))
        ghost.result(1, 0, buckets=(1,))


def all_twice(ghosts: list[Ghost]) -> None:
    for _ in range(2):
        rows_and_no_result(ghosts)
        for ghost in ghosts:
            for dest in range(2):
                ghost.result(dest, 0)


@pytest.mark.parametrize(
    "sends",
    [
        nothing,
        a_row_to_one,
        half_a_row,
        rows_and_no_result,
        a_result_to_one,
        a_result_in_part,
        all_twice,
    ],
)
@pytest.mark.parametrize(("workers", "ghosts"), [(2, 1), (3, 1), (4, 1), (5, 2)])
def test_the_others_go_on_whatever_was_sent(
    job: Callable[..., Job],
    workers: int,
    ghosts: int,
    sends: Callable[[list[Ghost]], None],
) -> None:
    """As many steps as the window has; then they wait for the one that stands still."""
    made = job(codes.spread(workers, micro=2), ghosts)

    def body(worker: Worker) -> int:
        if worker.rank == 0:
            sends(made.ghosts)
        for step in range(WINDOW):
            worker.step(step)
        still, until = [g.rank for g in made.ghosts], time.monotonic() + LIMIT_S
        behind: list[int] = []
        while behind != still:  # on a busy machine others, too, are behind for a while
            ok, behind = worker.exchange.begin(WINDOW, 0.05)
            assert not ok
            assert time.monotonic() < until, behind
        return worker.counters().slices_deputised

    assert sum(made.run(body)) > 0


def test_a_calm_step_sends_and_copies_what_it_does_without_deputies(
    job: Callable[..., Job],
) -> None:
    """No further message, no byte more, no copy."""
    code, steps = codes.spread(4, micro=2), 20

    def counts(deputy_s: float) -> list[tuple[int, ...]]:
        gate = threading.Barrier(code.workers)

        def body(worker: Worker) -> tuple[int, ...]:
            for step in range(steps):
                gate.wait(LIMIT_S)
                assert worker.exchange.begin(step, LIMIT_S)[0]
                worker.post(step, code.work[worker.rank][0])
                assert worker.exchange.wait(step, LIMIT_S)
                got = np.frombuffer(worker.exchange.take(step), np.float32)
                np.testing.assert_array_equal(got, truth(code, step))
            c = worker.counters()
            return c.messages_sent, c.bytes_sent, c.notes_sent, c.bytes_copied

        return job(code).run(body, deputy_s=deputy_s)

    buckets, others = len(STARTS) - 1, code.workers - 1
    row = COUNT * 4 // code.workers * others
    want = (steps * 2 * buckets * others, steps * 2 * row, 0, 0)
    assert counts(0.0) == [want] * code.workers
    assert counts(LIMIT_S) == [want] * code.workers


def test_few_messages_are_under_way_to_a_worker_that_stands_still(
    job: Callable[..., Job],
) -> None:
    """A transport may have memory for few that nobody takes; the window has an end."""
    made, window = job(codes.spread(4, micro=2), 1), 40

    def body(worker: Worker) -> tuple[int, int]:
        for step in range(window):
            worker.step(step)
        assert not worker.exchange.begin(window, 0.05)[0]
        stats = worker.engine.stats()
        return stats.in_flight, stats.held

    step = 2 * 2 * (len(STARTS) - 1)  # messages of one step, with those of deputies
    for in_flight, held in made.run(body, window=window):
        assert in_flight <= 32 + 2 * step
        assert window < held + in_flight < 2 * window * step


def test_owners_and_deputies_at_a_time_with_every_message_late(
    job: Callable[..., Job],
) -> None:
    """Deputies that act long before slices can be here, and slices that come then.

    A receive may take 20 ms, so that a deputy's slice often comes while the owner's is
    received into the result.
    """
    code = codes.spread(4, micro=2)
    made = job(code, max_delay_us=20_000, seed=3)

    def body(worker: Worker) -> tuple[int, int]:
        for step in range(12):
            worker.step(step)
        return worker.counters().slices_deputised, worker.counters().bytes_copied

    deputised, copied = np.sum(made.run(body, deputy_s=0.001), axis=0)
    assert deputised > 0
    assert copied > 0


def test_a_row_that_has_come_since_is_lacked_no_more(
    job: Callable[..., Job],
) -> None:
    """Rows come slowly, so owners say again and again what they lack."""
    last, both = 7, threading.Barrier(2)

    def body(worker: Worker) -> None:
        exchange, until = worker.exchange, time.monotonic() + LIMIT_S
        assert exchange.begin(0, LIMIT_S)[0]
        worker.post(0, worker.rank)
        while exchange.needs(0) < 2:
            assert time.monotonic() < until
            time.sleep(1e-3)
        if worker.rank == 1:
            worker.post(0, last)
        while not exchange.has(0, last):
            assert time.monotonic() < until
        seen = exchange.needs(0)
        while exchange.needs(0) < seen + 4:
            assert exchange.has(0, last)
            assert time.monotonic() < until
        both.wait(LIMIT_S)  # whoever has all rows lacks nothing more
        for node in range(2, last):
            worker.post(0, node)
        assert exchange.wait(0, LIMIT_S)
        exchange.take(0)

    job(codes.spread(2, micro=4, copies=1)).run(body)
