"""Two or three workers in one process that wait for one another, or do not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from codedgrad.settings import ExchangeSettings

from codedgrad import codes
from codedgrad.errors import WorkerError
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import _engine, progress
from codedgrad.job.place import Place
from codedgrad.job.runtime import Runtime
from codedgrad.row.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GRACE_S = 0.3
SETTINGS = ExchangeSettings(window=2)


class Worker:
    """One worker of a job of threads; its rows are ones."""

    def __init__(self, job: Runtime) -> None:
        self.job, n = job, job.size
        model = torch.nn.Linear(2, 2)
        layout = Payload(model.named_parameters(), workers=n, settings=SETTINGS).layout
        layout.bucket_starts = [0, layout.count]
        code = codes.uncoded(n)
        self.exchange = EngineExchange(job, code, layout, SETTINGS)
        self.row = self.exchange.row_of(job.rank, 0)
        job.gather(b"", "to open an exchange")

    def step(self, number: int) -> None:
        self.exchange.begin(number)
        buffer = self.exchange.row_buffer()
        buffer.tensor.fill_(1.0)
        self.exchange.post(number, self.row, buffer)
        self.exchange.wait_all(number)
        total, _ = self.exchange.take(number)
        assert total.tolist() == [float(self.job.size)] * total.numel()


@pytest.fixture(params=[2, 3])
def start(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[Worker], None]], list[str]]]:
    """A function that runs a worker's script in a thread for each; returns errors."""
    monkeypatch.setattr(progress, "GRACE_S", GRACE_S)
    size = request.param
    hub = _engine.LocalHub(size)
    jobs = [
        Runtime(
            place=Place(rank, size, rank, size),
            channel=None,  # type: ignore[arg-type]
            engine=_engine.Engine.over_local(hub, rank),
            timeout_s=60.0,
        )
        for rank in range(size)
    ]

    def run(script: Callable[[Worker], None]) -> list[str]:
        def one(job: Runtime) -> str:
            try:
                script(Worker(job))
            except WorkerError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, jobs))

    yield run
    with ThreadPoolExecutor(size) as pool:
        list(pool.map(lambda job: job.engine.stop(5.0), jobs))


Start = "Callable[[Callable[[Worker], None]], list[str]]"


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("place", ["in a barrier", progress.AT_THE_END])
def test_one_in_a_collective_and_the_others_in_a_step(
    place: str, before: int, start: Start
) -> None:
    def script(worker: Worker) -> None:
        for number in range(before):
            worker.step(number)
        if worker.job.rank == worker.job.size - 1:
            worker.job.gather(b"", place)
        else:
            worker.step(before)

    begin = time.monotonic()
    errors = start(script)
    assert time.monotonic() - begin < 10.0
    last = len(errors) - 1
    words = "has ended its" if place == progress.AT_THE_END else "waits in a barrier"
    for error in errors:  # two may give up at once, each in its own name
        assert f"it waits in step {before} for worker {last}, which {words}" in error
        assert f"after {before} step(s)" in error


def test_nobody_is_stuck_while_a_straggler_takes_its_time(start: Start) -> None:
    """Some wait in the step, then in a barrier, and longer than the grace in both."""

    def script(worker: Worker) -> None:
        worker.step(0)
        for number in (1, 2):
            if worker.job.rank == worker.job.size - 1:
                time.sleep(1.5)
            worker.step(number)
        if worker.job.rank == 0:
            time.sleep(1.5)
        worker.job.gather(b"", "in a barrier")
        worker.step(3)
        worker.exchange.close()

    assert set(start(script)) == {""}
