"""Reading inside the passes that costs much is told once, by one worker."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from codedgrad.data import ShardSampler
from codedgrad.data.cost import STEPS

READ_S, PASS_S = 0.004, 0.002


class Slow(torch.utils.data.Dataset[Any]):
    """A dataset whose samples take time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 2 * STEPS

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.tensor([float(index)])


def said(sampler: ShardSampler, caplog: pytest.LogCaptureFixture, first: int) -> int:
    """Go through two epochs as a worker whose pass begins there; count the words."""
    caplog.clear()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for step in sampler.steps(2, own=[(first, first + 1)]):
            step.fetch(first)
            time.sleep(PASS_S)
    return caplog.text.count("reading samples takes")


def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sampler = ShardSampler(Slow(READ_S), 2)
    assert said(sampler, caplog, 0) == 1
    assert "num_workers=2" in caplog.text
    assert sampler.cost is None  # nothing is measured any more


def test_others_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert said(ShardSampler(Slow(READ_S), 2), caplog, 1) == 0
    assert said(ShardSampler(Slow(0.0), 2), caplog, 0) == 0
    rows = (torch.arange(2.0 * STEPS),)
    assert ShardSampler(rows, 2).cost is None
    assert ShardSampler(Slow(0.0), 2, num_workers=1).cost is None
