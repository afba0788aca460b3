"""What happens when somebody is late: who waits for whom, and what it costs.

Passes sleep, so that any number of workers fit the cores. No speed is tested, only
structure: bounds are far from what is usual.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import re
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import everywhere

import codedgrad
from codedgrad import codes
from codedgrad.monitor.ring import ReportRing

if TYPE_CHECKING:
    from collections.abc import Callable

PASS_S = 0.04
MICRO = 2


def run(
    steps: int,
    faults: str = "",
    pause: Callable[[int], None] | None = None,
    **settings: Any,
) -> codedgrad.CodedGradient:
    """Train a small model whose pass sleeps; closed when it comes back."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    code = codes.spread(codedgrad.size(), micro=MICRO)
    settings.setdefault("same_bits", True)  # a call of `loss` is a micro-batch
    coded = codedgrad.CodedGradient(model, code, faults=faults, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        time.sleep(PASS_S / MICRO)
        return criterion(model(x), y)

    sampler = codedgrad.ShardSampler(data, 64)
    codedgrad.barrier()
    while coded.step < steps:
        if pause is not None:
            pause(coded.step)
        for shards in coded.steps(sampler):
            coded.backward(loss, shards)
            optimizer.step()
            optimizer.zero_grad()
    coded.close()
    assert len(set(everywhere(str(model.weight.tolist())))) == 1
    return coded


def last() -> int:
    return codedgrad.size() - 1


def step_times(coded: codedgrad.CodedGradient) -> list[float]:
    return [r.step_s for r in coded.record.reports]


def alone() -> bool:
    """A single worker has nobody who could help it; nothing to see."""
    return codedgrad.size() == 1


def test_no_redundant_pass_while_patience_lasts() -> None:
    coded = run(20, patience=20.0)
    assert sum(r.redundant_passes for r in coded.record.reports) == 0
    assert not any(r.abandoned for r in coded.record.reports)


@pytest.mark.parametrize("factor", [8, 40])
def test_nobody_waits_for_a_slow_worker(factor: int) -> None:
    coded = run(12, "" if alone() else f"slow:worker={last()},factor={factor}")
    reports = coded.record.reports
    # One that has been fast-forwarded is not late in that step, the others are helped.
    if not alone():
        assert statistics.median(step_times(coded)) < 0.6 * factor * PASS_S
        helped = sum(
            map(int, everywhere(str(sum(r.redundant_passes for r in reports))))
        )
        assert helped >= 12
    if codedgrad.rank() == last() and not alone():
        assert sum(r.abandoned or r.fast_forwarded for r in reports) >= 6


def test_a_stalled_worker_delays_nobody_within_the_window() -> None:
    coded = run(16, f"stall:worker={last()},step=5,seconds=1.5", window=32)
    if alone():
        return
    if codedgrad.rank() != last():
        assert max(step_times(coded)[4:]) < 1.2
        assert sum(r.backpressure_s for r in coded.record.reports) == 0.0
    else:
        assert sum(r.fast_forwarded for r in coded.record.reports) >= 3


def test_beyond_the_window_the_others_wait_and_say_for_whom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        coded = run(12, f"stall:worker={last()},step=3,seconds=3.5", window=2)
    if alone() or codedgrad.rank() == last():
        return
    said = [r.getMessage() for r in caplog.records if r.name == "codedgrad"]
    mine = [s for s in said if re.search(rf"to begin step \d+ for worker.*{last()}", s)]
    assert 1 <= len(mine) <= 4, said
    waited = sum(r.backpressure_s for r in coded.record.reports)
    assert 1.5 < waited < 10.0


def test_the_gil_does_not_matter() -> None:
    """The last worker's main thread holds the GIL for 1 s in the middle of a run."""

    def hold(step: int) -> None:
        if step == 5 and codedgrad.rank() == last():
            ctypes.PyDLL(None).usleep(1_000_000)

    coded = run(14, pause=hold, window=32)
    if codedgrad.rank() != last():
        assert max(step_times(coded)[4:]) < 0.8


def test_a_worker_that_begins_late_sends_no_row() -> None:
    """It finds the step decoded; tests/engine counts rows that come late after all."""

    def doze(step: int) -> None:
        if step % 3 == 0 and codedgrad.rank() == last():
            time.sleep(0.2)

    coded = run(12, pause=doze)
    absent = sum(last() not in r.arrivals_s for r in coded.record.reports)
    forwarded = sum(r.fast_forwarded for r in coded.record.reports)
    told = [int(count) for count in everywhere(str(forwarded))]
    if not alone():
        assert told[last()] >= 2
        if codedgrad.rank() == 0:
            assert absent >= told[last()]


def test_memory_stays_over_2000_steps() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    data = TensorDataset(torch.randn(32, 64), torch.randn(32, 64))
    code = codes.spread(codedgrad.size(), micro=1)
    faults = "random:probability=0.02,factor=4,seed=1"
    coded = codedgrad.CodedGradient(model, code, faults=faults)
    coded.record.reports = ReportRing(100)
    coded.record._limit = 100
    engine = codedgrad.job.runtime.current().engine
    sampler = codedgrad.ShardSampler(data, 16)
    row_bytes = 4 * coded._payload.layout.count
    before = engine.stats().pool_bytes  # gradients of other tests' models
    sizes, resident = [], []
    while coded.step < 2000:
        for shards in coded.steps(sampler):
            coded.backward(lambda x, y: (model(x) - y).square().mean(), shards)
            model.zero_grad()
        if coded.step % 100 == 0:
            gc.collect()
            sizes.append(engine.stats().pool_bytes - before)
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    coded.close()
    # docs/design.md, Memory: own slices' rows and results, a window of each at most.
    assert max(sizes) <= (16 + 1) * 3 * row_bytes + (1 << 20)
    assert resident[-1] - resident[4] < 8192  # KiB


def test_an_idle_engine_uses_little_of_a_core() -> None:
    coded = run(4)
    codedgrad.barrier()
    time.sleep(0.2)
    begin, cpu = time.monotonic(), time.process_time()
    time.sleep(2.0)
    share = (time.process_time() - cpu) / (time.monotonic() - begin)
    assert share < 0.03
    assert coded.step == 4
    codedgrad.barrier()
