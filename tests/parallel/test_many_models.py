"""Many models, one after another, as a search for hyper-parameters makes them."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import codedgrad
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = 12  # more than have short addresses
SAMPLES = 40


def by_steps(model: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    coded = codedgrad.CodedGradient(model, bucket_mb=0.0001)  # with hooks on parameters
    sampler = codedgrad.ShardSampler((x, y), SAMPLES)
    for shards in coded.steps(sampler):
        coded.backward(lambda a, b: (model(a) - b).square().mean(), shards)


def by_drop_in(model: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters()
    )
    each = SAMPLES // codedgrad.size()
    begin = codedgrad.rank() * each
    mine = slice(begin, begin + each)
    optimizer.zero_grad()
    (model(x[mine]) - y[mine]).square().mean().backward()


@pytest.mark.parametrize("train", [by_steps, by_drop_in])
def test_dropped_models_are_freed(
    train: Callable[[nn.Linear, torch.Tensor, torch.Tensor], None],
) -> None:
    """None is closed. Workers find out at different times that theirs is garbage."""
    if SAMPLES % codedgrad.size():
        return
    engine = runtime.current().engine
    before = engine.stats().sessions
    for number in range(MODELS):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(SAMPLES, 64, generator=generator)
        y = torch.randn(SAMPLES, 1, generator=generator)
        torch.manual_seed(number)
        model = nn.Linear(64, 1)
        train(model, x, y)
        assert model.weight.grad is not None
        got = model.weight.grad.clone()
        want = torch.autograd.grad((model(x) - y).square().mean(), model.weight)[0]
        torch.testing.assert_close(got, want)
        del model
        if number % codedgrad.size() == codedgrad.rank():
            gc.collect()
    gc.collect()
    codedgrad.barrier()
    until = time.monotonic() + 10.0
    while engine.stats().sessions > before and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.stats().sessions <= before
