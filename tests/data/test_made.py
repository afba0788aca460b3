"""Data that a pass makes itself: the same, whoever makes it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import codedgrad
from codedgrad import ConfigError, DataError
from codedgrad.data import Draw, MadeBatches

TOKENS = torch.arange(1000)


def windows(draw: Draw, generator: torch.Generator) -> Any:
    starts = torch.randint(900, (draw.count,), generator=generator)
    x = torch.stack([TOKENS[i : i + 8] for i in starts])
    noise = torch.rand(draw.count) + float(np.random.rand()) + random.random()  # noqa: NPY002
    return x, {"noise": noise, "names": [f"{draw.step}.{draw.index}"] * draw.count}


def epoch_of(
    workers: int, processes: int = 0, micro: int = 2, number: int = 0, **more: Any
) -> list[Any]:
    """All samples of an epoch, in their order, read as `workers` would."""
    sampler = codedgrad.batches(windows, 3, 24, num_workers=processes, **more)
    sampler.set_epoch(number)
    spans = [(w * micro, (w + 1) * micro) for w in range(workers)]
    found = []
    steps = sampler.steps(workers * micro, workers, whole=True, own=spans)
    for step in steps:
        for span in spans:
            x, more_of_it = step.fetch(*span)
            found += list(
                zip(
                    x.tolist(),
                    more_of_it["noise"].tolist(),
                    more_of_it["names"],
                    strict=True,
                )
            )
    return found


@pytest.mark.parametrize("chunk", [1, 2])
def test_any_number_of_workers_and_processes_makes_the_same(chunk: int) -> None:
    want = epoch_of(1, chunk=chunk)
    assert len(want) == 72
    assert want[24 + 2][2] == ("1.2")
    assert len({n for _, n, _ in want}) == 72
    for workers, processes in ((2, 0), (4, 0), (3, 1), (1, 2)):
        assert epoch_of(workers, processes, chunk=chunk) == want
    assert epoch_of(2, chunk=chunk, number=1) != want
    assert epoch_of(2, chunk=chunk, seed=1) != want


def test_a_piece_of_a_shard_is_a_part_of_it() -> None:
    step = next(codedgrad.batches(windows, 1, 24, chunk=3).steps(8, 2, whole=True))
    whole = step.fetch(4, 8)
    pieces = [step.fetch(p) for p in range(4, 8)]
    assert torch.equal(whole[0], torch.cat([x for x, _ in pieces]))
    assert whole[1]["names"] == [n for _, m in pieces for n in m["names"]]


def test_an_epoch_of_draws_is_resumed() -> None:
    def starts(sampler: MadeBatches, stop: int = 9) -> list[Any]:
        found = []
        for step in sampler.steps(4):
            found.append(step.fetch(0, 4)[0].tolist())
            step.note_used()
            if len(found) == stop:
                break
        return found

    want = starts(codedgrad.batches(windows, 5, 24))
    first = codedgrad.batches(windows, 5, 24)
    begun = starts(first, 2)
    again = codedgrad.batches(windows, 5, 24)
    again.load_state_dict(first.state_dict())
    assert begun + starts(again) == want
    other = codedgrad.batches(windows, 6, 24)
    with pytest.raises(ConfigError, match="steps = 5, and this one has 6"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((windows, 0, 8), "steps must be a number from 1, got 0"),
        ((windows, 3, 2.5), "batch_size must be a number from 1, got 2.5"),
        (([1, 2], 3, 8), r"fn\(draw, generator\), got list; a dataset is for"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codedgrad.batches(*arguments)


def test_chunks_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="chunk=3 must divide batch_size=8"):
        codedgrad.batches(windows, 3, 8, chunk=3)
    with pytest.raises(ConfigError, match="made 4 at a time, cannot be cut into 4"):
        next(codedgrad.batches(windows, 3, 8, chunk=4).steps(4))


def test_what_cannot_be_made() -> None:
    def fails(draw: Draw, _: torch.Generator) -> Any:
        if draw.index == 5:
            raise KeyError("xyzzy")
        return (torch.ones(1),) * (1 + draw.index % 2)

    step = next(codedgrad.batches(fails, 3, 8).steps(2))
    with pytest.raises(DataError, match=r"draw 5 of epoch 0 .* KeyError: 'xyzzy'"):
        step.fetch(1)
    with pytest.raises(DataError, match=r"make no batch: parts .* several lengths"):
        step.fetch(0)


@pytest.mark.parametrize(
    ("made", "got"),
    [
        ((torch.ones(3, 4), torch.ones(3, 1)), r"a Tensor of shape \(3, 4\)"),
        ({"x": torch.ones(2, 1), "y": np.ones(5)}, r"a ndarray of shape \(5,\)"),
        (torch.tensor(1.0), r"a Tensor of shape \(\)"),
        ([torch.ones(2, 1)], "a list of 1"),
    ],
)
def test_another_number_of_rows_is_refused(made: Any, got: str) -> None:
    def rollouts(_: Draw, __: torch.Generator) -> Any:
        return made

    step = next(codedgrad.batches(rollouts, 3, 8, chunk=2).steps(2))
    message = rf"rollouts of batches\(\) returned {got} for draw\.count = 2: wanted"
    with pytest.raises(DataError, match=message):
        step.fetch(0)


def test_samples_of_unequal_lengths_are_a_list() -> None:
    def rollouts(draw: Draw, _: torch.Generator) -> Any:
        return [torch.ones(1 + draw.index + i) for i in range(draw.count)]

    (batch,) = next(codedgrad.batches(rollouts, 1, 4, chunk=2).steps(1)).fetch(0)
    assert [len(x) for x in batch] == [1, 2, 3, 4]


def test_shards_are_no_batch_and_unknown_words_are_named() -> None:
    step = next(codedgrad.batches(windows, 1, 4).steps(2))
    with pytest.raises(ConfigError, match=r"coded\.backward\(loss_fn, shards\), which"):
        _x, _y = step
    wrong: Any = {"num_worker": 1}
    for make in (
        lambda: codedgrad.batches(windows, 1, 4, **wrong),
        lambda: codedgrad.ShardSampler((TOKENS,), 4, **wrong),
        lambda: codedgrad.ShardStream(lambda _: [], 4, 4, **wrong),
    ):
        known = r"mean num_workers\?\); there are .*batch_size, .*pin_memory"
        with pytest.raises(TypeError, match=known):
            make()
