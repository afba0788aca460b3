"""Cases of job.py about data: samples, loader processes, samplers and streams."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn
from torch.utils.data import (
    Subset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)
from training import DATA, Faulty, everybody, last, train

import codedgrad


def fails() -> None:
    raise KeyError("xyzzy")


def unreadable_sample() -> None:
    train(nn.Linear(4, 3), data=Faulty(fails), code=everybody())


def unreadable_sample_of_a_loader() -> None:
    train(nn.Linear(4, 3), data=Faulty(fails), code=everybody(), loaders=2)


def in_a_loader(end: Any) -> Any:
    """A fault of loader processes alone: the process that trains reads, too."""
    return Faulty(lambda: end() if get_worker_info() is not None else None)


def dead_loader() -> None:
    data = in_a_loader(lambda: os._exit(7))
    train(nn.Linear(4, 3), data=data, code=everybody(), loaders=1)


def killed_loader() -> None:
    data = in_a_loader(lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(nn.Linear(4, 3), data=data, code=everybody(), loaders=1)


def source_of_last(mine: Any, others: Any) -> None:
    """Train with a source that is another one on the last worker."""
    train(nn.Linear(4, 3), code=everybody(), source=mine if last() else others)


def different_dataset_length() -> None:
    source_of_last(
        codedgrad.ShardSampler(Subset(DATA, range(60)), 24),
        codedgrad.ShardSampler(DATA, 24),
    )


def different_order_of_a_sampler() -> None:
    def weighted(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        sampler = WeightedRandomSampler([1.0] * 64, 64, generator=generator)
        return codedgrad.ShardSampler(DATA, 24, sampler=sampler)

    source_of_last(weighted(1), weighted(0))


def collate_that_differs() -> None:
    calls = 0

    def collate(items: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        x, y = default_collate(items)
        return {"x": x, "y": y} if last() and calls > 4 else (x, y)

    sampler = codedgrad.ShardSampler(DATA, 24, collate_fn=collate)
    source_of_last(sampler, sampler)


def a_stream_that_ends() -> None:
    def make(shard: int, _: int) -> Any:
        return (DATA[i % 64] for i in range(16 if shard == 2 else 100))

    stream = codedgrad.ShardStream(make, 24, 5, at_end="raise")
    source_of_last(stream, stream)


def different_position() -> None:
    resumed = codedgrad.ShardSampler(DATA, 24)
    step = next(resumed.steps(6))
    step.note_used()
    resumed.load_state_dict(resumed.state_dict())
    source_of_last(resumed, codedgrad.ShardSampler(DATA, 24))
