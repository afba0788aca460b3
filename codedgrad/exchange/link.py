"""What a message costs in this job, measured once, to choose the size of buckets.

An exchange of s bytes takes a + b s. Two sizes are exchanged a few times. Of each the
shortest time counts, as the one without a disturbance, and of the workers' times the
median, so that all workers cut their rows alike.
"""

from __future__ import annotations

import statistics
import struct
import time
from typing import TYPE_CHECKING

import torch

from codedgrad import codes
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job.runtime import Link
from codedgrad.job.settings import ExchangeSettings
from codedgrad.row.layout import Layout

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

SMALL, LARGE = 1 << 10, 1 << 20  # elements of fp32
ROUNDS = 6
_USUAL = Link(1e-4, 1e-3)  # where it is not measured, because workers are lost
_LEAST_S, _LEAST_S_PER_MB = 1e-6, 1e-7


def measure(runtime: Runtime) -> Link:
    """Returns what a message costs in this job. Collective.

    The first call measures it, which takes some 50 ms; later calls remember.

    Raises:
        WorkerError: a worker failed meanwhile.
    """
    if runtime.link is None:
        runtime.gather(b"", "to measure the network")
        if runtime.absent:  # their slices would never come
            runtime.link = _USUAL
    if runtime.link is None:
        small, large = _seconds(runtime, SMALL), _seconds(runtime, LARGE)
        data = struct.pack("dd", small, large)
        found = runtime.gather(data, "to measure the network")
        both = [struct.unpack("dd", blob) for blob in found]
        small, large = (statistics.median(s) for s in zip(*both, strict=True))
        mb = 4 * (LARGE - SMALL) / (1 << 20)
        slope = max(_LEAST_S_PER_MB, (large - small) / mb)
        latency = max(_LEAST_S, small - slope * 4 * SMALL / (1 << 20))
        runtime.link = Link(latency, slope)
    return runtime.link


def cut(runtime: Runtime, layout: Layout) -> None:
    """Cuts rows into buckets by what a message costs here, if that matters. Collective.

    The workers have compared their layouts before. With local groups the cost is
    measured over all processes, though only the leaders will exchange.
    """
    if runtime.size > 1 and layout.worth_measuring():
        layout.cut(measure(runtime).latency_mb)


def _seconds(runtime: Runtime, count: int) -> float:
    """Returns the shortest of a few exchanges of `count` elements, in seconds."""
    vector = torch.nn.Parameter(torch.zeros(count))
    settings = ExchangeSettings(window=2 * ROUNDS, bucket_mb=1024.0)
    layout = Layout([("vector", vector)], workers=runtime.size, settings=settings)
    code = codes.uncoded(runtime.size)
    exchange = EngineExchange(runtime, code, layout, settings)
    row = exchange.row_of(runtime.rank, 0)
    times = []
    runtime.gather(b"", "to measure the network")
    for step in range(ROUNDS):
        exchange.begin(step)
        data = exchange.row_buffer()
        data.tensor.zero_()
        begin = time.monotonic()
        exchange.post(step, row, data)
        exchange.wait_all(step)
        times.append(time.monotonic() - begin)
        exchange.take(step)
    exchange.close()
    # In the first round memory is untouched. Whoever had the last result first begins
    # the next round, so its time includes the others' lag.
    return min(times[1:])
