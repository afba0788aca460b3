"""What a message costs here: measured once per job, for the size of buckets.

An exchange of s bytes takes a + b s. Two sizes are exchanged a few times; the least
time of each is the one without a disturbance, and what the workers find is averaged by
the median, so that all of them cut their payloads alike.
"""

from __future__ import annotations

import statistics
import struct
import time
from typing import TYPE_CHECKING

import torch

from codedgrad import codes
from codedgrad.exchange.engine import Exchange
from codedgrad.job.runtime import Link
from codedgrad.row.layout import Layout
from codedgrad.settings import ExchangeSettings

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

SMALL, LARGE = 1 << 10, 1 << 20  # elements of fp32
ROUNDS = 6
_LEAST_S, _LEAST_S_PER_MB = 1e-6, 1e-7


def measure(here: Runtime) -> Link:
    """Of this job, measured at the first call. Collective; some 50 ms.

    Raises:
        WorkerError: a worker failed meanwhile.
    """
    if here.link is None:
        small, large = _seconds(here, SMALL), _seconds(here, LARGE)
        found = here.gather(struct.pack("dd", small, large), "to measure the network")
        both = [struct.unpack("dd", blob) for blob in found]
        small, large = (statistics.median(s) for s in zip(*both, strict=True))
        mb = 4 * (LARGE - SMALL) / (1 << 20)
        slope = max(_LEAST_S_PER_MB, (large - small) / mb)
        latency = max(_LEAST_S, small - slope * 4 * SMALL / (1 << 20))
        here.link = Link(latency, slope)
    return here.link


def _seconds(here: Runtime, count: int) -> float:
    """Of one exchange of `count` elements, the least of some."""
    vector = torch.nn.Parameter(torch.zeros(count))
    settings = ExchangeSettings(bucket_mb=1024.0)
    payload = Layout([("vector", vector)], workers=here.size, settings=settings)
    exchange = Exchange(here, codes.uncoded(here.size), payload, window=2 * ROUNDS)
    row = exchange.row_of(here.rank, 0)
    times = []
    here.gather(b"", "to measure the network")
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
    # The first finds memory untouched; each is begun by whoever had the last one first.
    return min(times[1:])


def cut(here: Runtime, payload: Layout) -> None:
    """Cut a payload into buckets by what a message costs here, if that matters.

    Collective, over workers that have compared their payloads. With local groups it is
    measured over all processes, though only leaders will exchange.
    """
    if here.size > 1 and payload.worth_measuring():
        payload.cut(measure(here).latency_mb)
