"""What the decoders' tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codedgrad.lab.decoders import Arrivals, Memory, Network, Recording
from codedgrad.lab.decoders.network import SHAPES


@pytest.fixture(scope="session")
def network() -> Network:
    """Return weights near zero, so that no test depends on the shipped ones."""
    random = np.random.default_rng(0)
    return Network(**{n: 0.01 * random.normal(size=s) for n, s in SHAPES.items()})


def case(
    seed: int = 0,
    *,
    k: int = 5,
    bounds: tuple[int, ...] = (0, 7, 12, 30),
    late: tuple[int, ...] = (1, 3),
    partly: dict[int, float] | None = None,
    unseen: tuple[int, ...] = (),
) -> tuple[Arrivals, Memory, Any]:
    """Return random arrivals, the memory of a few steps, and every shard's truth."""
    random = np.random.default_rng(seed)
    count = bounds[-1]
    memory = Memory(k, np.asarray(bounds))
    common = random.normal(size=count)
    for step in range(3):
        grads = common + random.normal(size=(k, count))
        for j in range(k):
            if j not in unseen:
                memory.shard(j, step, grads[j])
        memory.result(grads.mean(axis=0))
    truth = common + random.normal(size=(k, count))
    fraction = np.ones(k)
    fraction[list(late)] = 0.0
    rows = truth.copy()
    for j, share in (partly or {}).items():
        fraction[j] = share
        rows[j] += 0.3 * random.normal(size=count)
    return Arrivals.of(rows, fraction), memory, truth


def drifting(
    steps: int = 80, k: int = 6, sizes: tuple[int, ...] = (300, 280), noise: float = 0.3
) -> Recording:
    """Return a run whose shards differ and drift slowly, with noise."""
    random = np.random.default_rng(7)
    count = sum(sizes)
    own = random.normal(size=(k, count))
    common = random.normal(size=count)
    grads = np.empty((steps, k, 1, count), np.float32)
    for t in range(steps):
        common = 0.98 * common + 0.1 * random.normal(size=count)
        draws = noise * random.normal(size=(k, count))
        grads[t, :, 0] = common + own + draws
    return Recording(grads, np.asarray(sizes))
