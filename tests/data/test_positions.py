"""An epoch that is left and resumed: the samples that were not used, once each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from codedgrad import ConfigError, ShardBatchSampler, ShardSampler, codes

SIZE = 101
DATA = TensorDataset(torch.arange(SIZE))
Run = tuple[int, int, int]  # workers, batch size, steps until it is stopped


def used(sampler: ShardSampler, workers: int, stop: int = 1000) -> list[np.ndarray]:
    """The samples of the steps until the epoch ends, or of `stop` of them."""
    found = []
    for step in sampler.steps(workers * 4, workers, whole=True):
        found.append(step.indices(0, step.parts))
        step.note_used()
        if len(found) == stop:
            break
    return found


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0 + i % 3 for i in range(SIZE)], 90)


KINDS: dict[str, Any] = {
    "shuffled": dict,
    "in order": lambda: {"shuffle": False},
    "fixed": lambda: {"partition": "fixed"},
    "fixed by label": lambda: {"partition": "fixed", "by": np.arange(SIZE) % 3},
    "fixed, in order": lambda: {"partition": "fixed", "shuffle": False},
    "weighted": lambda: {"sampler": weighted()},
}
RUNS: list[list[Run]] = [
    [(2, 16, 3), (2, 16, 99)],
    [(2, 16, 2), (4, 16, 2), (1, 16, 99)],
    [(2, 16, 1), (4, 32, 1), (2, 16, 1), (3, 12, 99)],
    [(1, 8, 99), (5, 20, 99)],
]


def resumed(kind: Any, runs: list[Run]) -> list[np.ndarray]:
    state: dict[str, Any] | None = None
    found = []
    for workers, batch, stop in runs:
        sampler = ShardSampler(DATA, batch, seed=3, **kind())
        if state is None:
            sampler.set_epoch(2)
        else:
            sampler.load_state_dict(state)
            sampler.set_epoch(2)  # as the loop of a script does
        found += used(sampler, workers, stop)
        state = sampler.state_dict()
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("runs", RUNS)
def test_the_rest_is_what_was_not_used(kind: Any, runs: list[Run]) -> None:
    sampler = ShardSampler(DATA, 16, seed=3, **kind())
    sampler.set_epoch(2)
    whole = Counter(sampler.order().tolist())
    found = resumed(kind, runs)
    assert Counter(np.concatenate(found).tolist()) == whole
    assert min(map(len, found)) > 1  # nor any batch of one


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_run_goes_on_as_if_it_had_not_stopped(kind: Any) -> None:
    for stop in (1, 3, 5):
        found = resumed(kind, [(2, 16, stop), (2, 16, 1), (2, 16, 99)])
        want = resumed(kind, [(2, 16, 99)])
        assert [f.tolist() for f in found] == [w.tolist() for w in want]


def test_steps_keep_their_numbers_and_later_epochs_are_whole() -> None:
    sampler = ShardSampler(DATA, 16, seed=3)
    used(sampler, 2, 3)
    again = ShardSampler(DATA, 16, seed=3)
    again.load_state_dict(sampler.state_dict())
    first = next(again.steps(8))
    assert (first.index, first.before) == (3, 48)
    assert len(used(again, 2)) == 7  # the same epoch, begun anew
    again.load_state_dict(sampler.state_dict())
    again.set_epoch(1)
    assert (again.state_dict()["epoch"], again.state_dict()["steps"]) == (1, 0)
    assert len(used(again, 2)) == 7


def test_the_place_is_behind_the_last_step_that_was_computed() -> None:
    sampler = ShardSampler(DATA, 16)
    assert sampler.state_dict()["samples"] == 0
    for i, step in enumerate(sampler.steps(4)):
        assert sampler.state_dict()["samples"] == 16 * i
        step.note_used()
        assert sampler.state_dict()["samples"] == min(16 * (i + 1), SIZE)
    again = ShardSampler(DATA, 16)
    again.load_state_dict(sampler.state_dict())  # at the end: none are left
    assert list(again.steps(4)) == []
    assert len(list(again.steps(4))) == 7


def test_a_state_is_plain_data() -> None:
    import io

    sampler = ShardSampler(DATA, 16, partition="fixed")
    used(sampler, 2, 2)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == sampler.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = 0, and this one has 1"),
        ({"shuffle": False}, "shuffle = True"),
        ({"partition": "fixed"}, "partition = 'shuffle'"),
        ({"sampler": weighted()}, "order of samples from Weighted"),
        ({"dataset": TensorDataset(torch.arange(90))}, "samples = 101.* has 90"),
    ],
)
def test_other_data_are_refused(change: Any, message: str) -> None:
    sampler = ShardSampler(DATA, 16)
    used(sampler, 2, 2)
    data = change.pop("dataset", DATA)
    with pytest.raises(ConfigError, match=message):
        ShardSampler(data, 16, **change).load_state_dict(sampler.state_dict())


def test_what_is_no_position() -> None:
    for state in ({}, {"step": 3}, {"epoch": 0, "same": {}, "steps": "x"}):
        with pytest.raises(ConfigError, match="not what the state_dict"):
            ShardSampler(DATA, 16).load_state_dict(state)


# ---- the drop-in ----


def test_the_drop_in_goes_on_with_any_number_of_workers() -> None:
    """Two workers use 3 batches, three the rest; loader processes have drawn more."""
    found: list[int] = []
    states = []
    for worker in range(2):
        sampler = ShardBatchSampler(DATA, 12, codes.uncoded(2), worker, seed=3)
        loader = DataLoader(DATA, batch_sampler=sampler, num_workers=1)
        for i, (batch,) in enumerate(loader):
            found += batch.tolist()
            if i == 2:
                states.append(sampler.state_dict(batches=i + 1))
                break
    assert states[0] == states[1]
    for worker in range(3):
        sampler = ShardBatchSampler(DATA, 12, codes.uncoded(3), worker, seed=3)
        sampler.load_state_dict(states[0])
        assert len(sampler) == 6
        for (batch,) in DataLoader(DATA, batch_sampler=sampler):
            found += batch.tolist()
        assert len(sampler) == 9  # of the next epoch
    begin = found[:1] + found[18:19]  # what fills the last step up
    count = Counter(found)
    assert sorted(count) == list(range(SIZE))
    assert sum(count.values()) == SIZE + 7
    assert all(count[i] == 2 for i in begin)


def test_a_resumed_epoch_of_the_drop_in_is_saved_again() -> None:
    one, code = ShardBatchSampler(DATA, 12, codes.uncoded(1), 0), codes.uncoded(1)
    want = list(one)
    batches = []
    state = ShardBatchSampler(DATA, 12, code, 0).state_dict(batches=0)
    for count in (3, 2, 4):
        sampler = ShardBatchSampler(DATA, 12, code, 0)
        sampler.load_state_dict(state)
        for i, batch in enumerate(sampler):
            batches.append(batch)
            if i + 1 == count:
                state = sampler.state_dict(batches=i + 1)
                break
    assert batches == want


def test_batches_that_were_not_drawn() -> None:
    sampler = ShardBatchSampler(DATA, 12, codes.uncoded(1), 0)
    with pytest.raises(ConfigError, match="has drawn 0 batches of epoch 0"):
        sampler.state_dict(batches=1)
    next(iter(sampler))
    with pytest.raises(ConfigError, match="has drawn 1 batches of epoch 0"):
        sampler.state_dict(batches=2)
    sampler.set_epoch(1)
    with pytest.raises(ConfigError, match="has drawn 0 batches of epoch 1"):
        sampler.state_dict(batches=1)


def test_steps_before_the_first_batch_have_no_order() -> None:
    """A warm-up backward, for example."""
    sampler = ShardBatchSampler(DATA, 12, codes.uncoded(1), 0)
    told = dict(sampler.describe(sampler.begun_epoch))
    assert (told["epoch"], told["order of samples"]) == ("-1", "00000000")


def test_both_faces_tell_the_same_place() -> None:
    ours, theirs = (
        ShardSampler(DATA, 12),
        ShardBatchSampler(DATA, 12, codes.uncoded(1), 0),
    )
    used(ours, 1, 2)
    batches = iter(theirs)
    next(batches)
    next(batches)
    assert ours.state_dict()["samples"] == theirs.state_dict(2)["samples"]


# ---- batches of one ----


@pytest.mark.parametrize("kind", ["shuffle", "fixed"])
@pytest.mark.parametrize("size", range(16, 70))
def test_no_pass_has_a_single_sample(kind: str, size: int) -> None:
    """Neither an own pass, which is a whole shard, nor a helper's piece."""
    data: Dataset[Any] = TensorDataset(torch.arange(size))
    for workers, micro, batch in ((1, 2, 4), (2, 2, 8), (4, 2, 16), (3, 1, 6)):
        sampler = ShardSampler(data, batch, partition=kind)
        steps = list(sampler.steps(workers * micro, workers, whole=True))
        assert len(steps) == len(sampler)
        assert sum(step.total for step in steps) == size
        for step in steps:
            assert 1 not in step.sizes
            own = [step.samples(w * micro, (w + 1) * micro) for w in range(workers)]
            assert 1 not in own
