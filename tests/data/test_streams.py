"""Streams: each shard's samples in their order, from any place, however long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from codedgrad import ConfigError, DataError, ShardStream
from codedgrad.data import even


class Log:
    """Counts what was opened and read."""

    def __init__(self, length: Any = 1000) -> None:
        self.opened: list[Any] = []
        self.read = 0
        self._length = length if callable(length) else lambda _: length

    def make(self, shard: int, epoch: int) -> Iterator[tuple[int, float]]:
        self.opened.append(shard)
        return self._from(shard, epoch, 0)

    def make_from(self, shard: int, epoch: int, start: int) -> Iterator[Any]:
        self.opened.append((shard, start))
        return self._from(shard, epoch, start)

    def _from(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, float]]:
        for i in range(start, self._length(shard)):
            self.read += 1
            yield 10_000 * epoch + 1000 * shard + i, float(torch.rand(()))


def samples(step: Any, *span: int) -> list[int]:
    return step.fetch(*span)[0].tolist()


def steps_of(stream: ShardStream, shards: int = 2, micro: int = 2) -> Iterator[Any]:
    return stream.steps(shards * micro, shards, whole=True)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_shard_reads_its_own_stream_in_order(processes: int) -> None:
    log = Log()
    stream = ShardStream(log.make, 8, 5, num_workers=processes)
    stream.set_epoch(3)
    steps = stream.steps(4, 2, whole=True, own=[(2, 4)])
    found = [x for step in steps for x in samples(step, 2, 4)]
    assert found == [30_000 + 1000 + i for i in range(20)]
    if processes == 0:
        assert log.opened == [1]
        assert log.read == 20  # nothing twice, nothing ahead


def test_pieces_in_any_order_and_steps_again_read_nothing_twice() -> None:
    log = Log()
    for step in steps_of(ShardStream(log.make, 16, 3)):
        whole = samples(step, 2, 4)
        assert samples(step, 3, 4) == whole[4:]
        assert samples(step, 2, 3) == whole[:4]
        assert samples(step, 2, 4) == whole
    assert (log.opened, log.read) == ([1], 24)


@pytest.mark.parametrize("start", [False, True])
def test_a_helper_reads_up_to_its_place(*, start: bool) -> None:
    log = Log()
    stream = ShardStream(log.make_from if start else log.make, 8, 9)
    steps = list(steps_of(stream))
    assert samples(steps[5], 3, 4) == [1000 + 22, 1000 + 23]
    assert samples(steps[5], 2, 3) == [1000 + 20, 1000 + 21]
    # With a start it was opened a second time, for the piece before.
    assert log.opened == ([(1, 22), (1, 20)] if start else [1])
    assert log.read == (4 if start else 24)
    assert samples(steps[7], 2, 4) == [1000 + i for i in range(28, 32)]


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("length", [1, 3, 7, 20])
def test_a_short_stream_begins_again(length: int, *, start: bool) -> None:
    log = Log(length)
    make = log.make_from if start else log.make
    want = [1000 + i % length for i in range(36)]
    steps = list(steps_of(ShardStream(make, 8, 9)))
    assert [x for step in steps for x in samples(step, 2, 4)] == want
    fresh = list(steps_of(ShardStream(make, 8, 9)))
    assert samples(fresh[6], 2, 4) == want[24:28]  # whoever comes in at a later step
    assert samples(fresh[2], 2, 4) == want[8:12]


def test_streams_of_unequal_length() -> None:
    log = Log(lambda shard: 8 if shard == 0 else 100)
    steps = list(steps_of(ShardStream(log.make, 8, 4, at_end="raise")))
    assert [samples(step, 2, 4)[0] for step in steps] == [1000, 1004, 1008, 1012]
    assert samples(steps[1], 0, 2) == [4, 5, 6, 7]
    with pytest.raises(DataError, match=r"shard 0 ended after 8 .* fewer steps"):
        samples(steps[2], 0, 2)


def test_random_numbers_follow_from_the_place() -> None:
    def drawing(shard: int, epoch: int) -> Iterator[Any]:
        numbers = list(range(50))
        random.shuffle(numbers)  # as shuffle buffers of libraries do
        for n in numbers:
            yield n, float(torch.rand(()))

    def all_of(order: list[int]) -> Any:
        steps = list(steps_of(ShardStream(drawing, 8, 6, seed=2)))
        return {i: [t.tolist() for t in steps[i].fetch(2, 4)] for i in order}

    torch.manual_seed(4)
    want = all_of([0, 1, 2, 3, 4, 5])
    torch.manual_seed(5)
    random.seed(7)
    assert all_of([5, 2, 4]) == {i: want[i] for i in (5, 2, 4)}
    assert len({str(b) for b in want.values()}) == 6


def test_streams_are_resumed_at_their_place() -> None:
    def run(stream: ShardStream, stop: int = 99) -> list[int]:
        found = []
        for step in steps_of(stream):
            found.append(samples(step, 0, 2))
            step.note_used()
            if len(found) == stop:
                break
        return found

    log = Log()
    want = run(ShardStream(log.make, 8, 6))
    first = ShardStream(log.make, 8, 6)
    begun = run(first, 2)
    again = ShardStream(log.make, 8, 6)
    again.load_state_dict(first.state_dict())
    begun += run(again, 1)
    last = ShardStream(log.make, 8, 6)
    last.load_state_dict(again.state_dict())
    assert begun + run(last) == want
    other = ShardStream(log.make, 8, 6)
    other.load_state_dict(first.state_dict())
    message = r"from 2 streams, and there are 4 now.* Give streams=2,.* set_epoch\(1\)"
    with pytest.raises(ConfigError, match=message):
        next(steps_of(other, 4))


@pytest.mark.parametrize("given", [None, 4])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_streams_go_on_with_another_number_of_workers(
    given: int | None, shards: int
) -> None:
    """Each stream goes on at its place, whichever shard reads it."""

    def run(stream: ShardStream, shards: int, stop: int = 99) -> list[list[int]]:
        found = []
        for step in steps_of(stream, shards):
            own = [samples(step, 2 * j, 2 * j + 2) for j in range(shards)]
            assert [len(s) for s in own] == [2 * k for k in even(4, shards)]
            found.append([x for s in own for x in s])
            step.note_used()
            if len(found) == stop:
                break
        return found

    log = Log()
    want = run(ShardStream(log.make, 8, 6), 4)
    first = ShardStream(log.make, 8, 6, streams=given)
    begun = run(first, 4, 2)
    for _ in range(2):
        again = ShardStream(log.make, 8, 6, streams=4)
        again.load_state_dict(first.state_dict())
        begun += run(again, shards, 2)
        first = again
    assert begun == want


def test_more_workers_than_streams() -> None:
    with pytest.raises(ConfigError, match="streams=2 cannot be divided among 3 shards"):
        next(steps_of(ShardStream(Log().make, 12, 2, streams=2), 3))


class Counting(IterableDataset[int]):
    def __init__(self, begin: int) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[int]:
        info = torch.utils.data.get_worker_info()
        own, of = (info.id, info.num_workers) if info else (0, 1)
        return iter(range(self._begin + own, self._begin + 100, of))


def test_an_iterable_dataset_and_a_data_loader_of_it() -> None:
    def plain(shard: int, epoch: int) -> Any:
        return Counting(1000 * shard)

    def loaded(shard: int, epoch: int) -> Any:
        return DataLoader(Counting(1000 * shard), batch_size=None, num_workers=2)

    def with_a_default(shard: int, epoch: int, own: Any = Counting) -> Any:
        return own(1000 * shard)

    for make in (plain, loaded, with_a_default):
        step = next(steps := steps_of(ShardStream(make, 8, 2)))
        assert step.fetch(2, 4)[0].tolist() == [1000, 1001, 1002, 1003]
        steps.close()


def test_the_first_samples_are_compared_once() -> None:
    stream = ShardStream(Log().make, 8, 2, helpers=True)
    next(steps_of(stream))
    assert len(stream.dataset) == 2
    assert stream.dataset[1][0] == 1000
    stream.set_epoch(1)
    next(steps_of(stream))
    assert stream.dataset is None
    assert not ShardStream(Log().make, 8, 2).helpable


def empty(shard: int, epoch: int) -> Any:
    return []


def failing(shard: int, epoch: int) -> Any:
    yield 1
    raise OSError("connection reset")


def none(shard: int, epoch: int) -> Any:
    return None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, r"make\(1, 0\) gave an empty stream"),
        (failing, "sample 1 of the stream of shard 1 in epoch 0 .* connection reset"),
        (none, r"make\(1, 0\) gave no stream: TypeError"),
    ],
)
def test_streams_that_cannot_be_read(make: Any, message: str) -> None:
    step = next(steps_of(ShardStream(make, 8, 2)))
    with pytest.raises(DataError, match=message):
        step.fetch(2, 4)


@pytest.mark.parametrize(
    ("arguments", "words", "message"),
    [
        ((Counting(0), 8, 2), {}, r"make\(shard, epoch\) .* got Counting"),
        ((empty, 8, 0), {}, "steps must be a number from 1"),
        ((empty, 8, 2), {"streams": 0}, "streams must be a number from 1"),
        ((empty, 8, 2), {"at_end": "stop"}, "at_end must be one of"),
        ((empty, 8, 2), {"num_workers": 2}, "batch_size=None and processes of its own"),
    ],
)
def test_bad_arguments(arguments: Any, words: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardStream(*arguments, **words)


def test_shards_that_do_not_divide_a_step() -> None:
    with pytest.raises(ConfigError, match=r"\(8\) .* multiple of their number, 3"):
        next(steps_of(ShardStream(empty, 8, 2), 3))
