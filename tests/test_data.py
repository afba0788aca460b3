"""Sampling: every sample once, the same on every worker, whatever their number."""

from __future__ import annotations

from collections import UserDict, namedtuple
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
)

from codedgrad import ConfigError, ShardBatchSampler, ShardSampler, codes
from codedgrad.data.order import even, part_sizes

DATA = TensorDataset(torch.arange(101.0).view(-1, 1), torch.arange(101))


def epoch(sampler: ShardSampler, parts: int) -> list[list[np.ndarray]]:
    return [[s.indices(p) for p in range(s.parts)] for s in sampler.steps(parts)]


@pytest.mark.parametrize("parts", [1, 3, 8, 16])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_sample_once(parts: int, *, shuffle: bool) -> None:
    steps = epoch(ShardSampler(DATA, 16, seed=3, shuffle=shuffle), parts)
    assert len(steps) == 7
    assert sorted(np.concatenate([i for s in steps for i in s])) == list(range(101))


def test_the_parts_do_not_depend_on_how_many_there_are() -> None:
    coarse, fine = (epoch(ShardSampler(DATA, 16, seed=1), p) for p in (2, 8))
    for a, b in zip(coarse[:-1], fine[:-1], strict=True):
        np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, number: int) -> list[int]:
        sampler = ShardSampler(DATA, 16, seed=seed)
        sampler.set_epoch(number)
        return sampler.order().tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_weights_of_an_uneven_step_add_up() -> None:
    last = list(ShardSampler(DATA, 16).steps(8))[-1]
    assert last.total == 5
    assert last.sizes == (3, 0, 0, 0, 2, 0, 0, 0)
    assert sum(last.weight(p) for p in range(8)) == pytest.approx(1.0)
    assert len(ShardSampler(DATA, 16, drop_last=True)) == 6


class Listed(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(i)]), i


def test_map_style_datasets_and_collate() -> None:
    shards = next(iter(ShardSampler(Listed(), 8, shuffle=False).steps(2)))
    x, y = shards.fetch(1)
    assert y.tolist() == [4, 5, 6, 7]
    assert x.tolist() == [[4.0], [5.0], [6.0], [7.0]]
    own = ShardSampler(Listed(), 8, shuffle=False, collate_fn=len)
    assert next(iter(own.steps(2))).fetch(0) == (4,)


@pytest.mark.parametrize(
    ("data", "batch", "message"),
    [
        (DATA, 102, "101 samples, fewer than the 102 of one step; lower batch_size"),
        (DATA, 0, "batch_size must be at least 1"),
        (iter([1, 2]), 1, "use a map-style dataset"),
        ((torch.ones(3), torch.ones(4)), 1, "different lengths"),
    ],
)
def test_bad_datasets(data: object, batch: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardSampler(data, batch)


def test_a_sampler_is_no_loader() -> None:
    with pytest.raises(TypeError, match=r"coded\.steps\(sampler\)"):
        iter(ShardSampler(DATA, 8))


def test_fewer_samples_than_parts() -> None:
    with pytest.raises(ConfigError, match="cannot be cut into 16 micro-batches"):
        next(ShardSampler(DATA, 8).steps(16))


LABELS = np.arange(101) * 7 % 4


def fixed(number: int = 0, **settings: object) -> ShardSampler:
    sampler = ShardSampler(DATA, 16, seed=3, partition="fixed", **settings)
    sampler.set_epoch(number)
    return sampler


def by_shard(
    sampler: ShardSampler, shards: int, micro: int, last: bool = True
) -> list[list[int]]:
    """Return the samples of every shard in an epoch, or in all steps but the last."""
    found: list[list[int]] = [[] for _ in range(shards)]
    for step in list(sampler.steps(shards * micro, shards))[: None if last else -1]:
        for g in range(step.parts):
            found[g // micro] += step.indices(g).tolist()
    return found


def test_the_default_is_the_global_shuffle_of_before() -> None:
    order = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([3, 2]))
    ).permutation(101)
    sampler = ShardSampler(DATA, 16, seed=3)
    sampler.set_epoch(2)
    for parts, shards in ((8, None), (8, 4)):
        got = [s.indices(p) for s in sampler.steps(parts, shards) for p in range(parts)]
        np.testing.assert_array_equal(np.concatenate(got), order)


@pytest.mark.parametrize(("shards", "micro"), [(1, 4), (2, 1), (4, 4), (8, 2), (16, 1)])
@pytest.mark.parametrize("by", [None, LABELS])
def test_a_shard_stays_on_its_part(shards: int, micro: int, by: object) -> None:
    epochs = [by_shard(fixed(e, by=by), shards, micro, last=False) for e in (0, 1)]
    own = fixed(by=by).shard_samples(shards)
    for a, b, part in zip(*epochs, own, strict=True):
        assert set(a) | set(b) <= set(part)
        assert a != b
        assert len(a) == 16 // shards * 6
    # Every sample is there once, and parts differ by one.
    epochs[0] = by_shard(fixed(by=by), shards, micro)
    assert sorted(chain(*epochs[0])) == list(range(101))
    sizes = {len(part) for part in own}
    assert max(sizes) - min(sizes) <= 1
    # It does not matter how a shard is cut into micro-batches.
    assert by_shard(fixed(by=by), shards, 1) == epochs[0]


def test_uneven_parts_of_a_fixed_partition() -> None:
    steps = list(fixed().steps(8, 4))  # parts of 26, 25, 25, 25; 4 of each a step
    assert len(steps) == len(fixed()) == 7
    assert all(s.sizes == (2,) * 8 for s in steps[:6])
    # Parts of a single sample would be nothing for batch norm.
    assert steps[6].sizes == (3, 0, 0, 0, 2, 0, 0, 0)
    assert sum(steps[6].weight(p) for p in range(8)) == pytest.approx(1.0)
    dropped = [list(chain(*by_shard(fixed(e, drop_last=True), 4, 2))) for e in (0, 1)]
    assert [len(set(d)) for d in dropped] == [96, 96]
    assert set(dropped[0]) != set(dropped[1])


def test_parts_in_the_order_of_labels() -> None:
    names = np.array(["d", "b", "a", "c"])[LABELS]
    for by in (LABELS, LABELS.tolist(), torch.from_numpy(LABELS), names):
        parts = by_shard(fixed(by=by), 4, 1)
        # Four labels have 25 or 26 samples, so all but a few of a shard have one label.
        assert all(np.bincount(LABELS[p]).max() >= len(p) - 3 for p in parts)
    plain = fixed(by=LABELS, shuffle=False).shard_samples(4)
    assert list(chain(*plain)) == np.argsort(LABELS, kind="stable").tolist()


def test_bad_partitions() -> None:
    with pytest.raises(ConfigError, match="no partition 'fix'; there are shuffle"):
        ShardSampler(DATA, 16, partition="fix")
    with pytest.raises(ConfigError, match=r"`by` is \(3,\), wanted one label for each"):
        fixed(by=[1, 2, 3])
    with pytest.raises(ConfigError, match='add partition="fixed"'):
        ShardSampler(DATA, 16, by=LABELS)
    with pytest.raises(ConfigError, match="multiples of the 3 shards"):
        next(fixed().steps(3, 3))
    with pytest.raises(ConfigError, match="multiples of the 4 shards"):
        next(fixed().steps(6, 4))
    few = ShardSampler((torch.ones(5),), 5, partition="fixed")
    with pytest.raises(ConfigError, match="cannot be cut into 8"):
        next(few.steps(8, 8))


def test_drop_in_groups_share_their_batch() -> None:
    code = codes.fractional(4, copies=2)
    lists = [list(ShardBatchSampler(DATA, 16, code, w, seed=2)) for w in range(4)]
    assert lists[0] == lists[1]
    assert lists[2] == lists[3]
    assert all(len(a) == len(b) == 8 for a, b in zip(lists[0], lists[2], strict=True))
    assert set(np.concatenate(lists[0] + lists[2])) == set(range(101))


def test_drop_in_skips_decoded_steps() -> None:
    sampler = ShardBatchSampler(DATA, 16, codes.uncoded(2), 0)
    sampler.skip = lambda step: step == 1
    assert [len(b) for b in sampler] == [8, 2, 8, 8, 8, 8, 8]


# ---- what the loss function is called with ----

Pair = namedtuple("Pair", "x y")


def stacked(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([i[0] for i in items]), torch.tensor([i[1] for i in items])


LISTED = TensorDataset(*stacked([Listed()[i] for i in range(40)]))
COLLATES: list[tuple[Any, int]] = [
    (lambda items: dict(zip("xy", stacked(items), strict=True)), 1),
    (lambda items: UserDict(x=stacked(items)), 1),
    (lambda items: Pair(*stacked(items)), 2),
    (stacked, 2),
    (lambda items: ({"x": [i[0] for i in items]}, [{"y": i[1]} for i in items]), 2),
    (lambda items: items, 1),
    (lambda items: [i[0] for i in items], 1),
    (lambda items: list(stacked(items)), 1),
    (lambda items: items[:0], 1),
    (lambda items: (items,), 1),
    (lambda items: stacked(items)[0], 1),
    (None, 2),
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, UserDict):
        return same(a.data, b.data)
    leaves = torch.utils._pytree.tree_leaves
    return len(leaves(a)) == len(leaves(b)) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


@pytest.mark.parametrize(("collate", "arguments"), COLLATES)
@pytest.mark.parametrize(
    "data", [Listed(), TensorDataset(*stacked([Listed()[i] for i in range(40)]))]
)
def test_the_arguments_are_what_a_dataloader_gives(
    data: Any, collate: Any, arguments: int
) -> None:
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    sampler = ShardSampler(data, 8, shuffle=False, collate_fn=collate)
    got = next(iter(sampler.steps(2))).fetch(0)
    assert len(got) == arguments
    whole = got if isinstance(batch, tuple) or collate is None else got[0]
    assert type(whole) is type(batch) or isinstance(batch, Pair | list)
    assert same(whole, batch)


@pytest.mark.parametrize(
    ("sample", "arguments"),
    [
        (lambda i: (i, float(i)), 2),
        (lambda i: [i, float(i)], 2),
        (lambda i: {"x": i}, 1),
        (lambda i: (i, {"y": [i, i]}), 2),
        (lambda i: Pair(i, -i), 2),
        (lambda i: i, 1),
    ],
)
def test_samples_of_any_structure(sample: Any, arguments: int) -> None:
    data = [sample(i) for i in range(16)]
    batch = next(iter(DataLoader(data, batch_size=4)))
    got = next(iter(ShardSampler(data, 8, shuffle=False).steps(2))).fetch(0)
    assert len(got) == arguments
    assert same(got if arguments > 1 else got[0], batch)


class Normalised(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x - 50.0) / 25.0, y


class Fetching(TensorDataset):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(-self.tensors[0][i], self.tensors[1][i]) for i in indices]


class Same(TensorDataset):
    """Changes nothing of a sample."""


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        Same(*DATA.tensors),
        Normalised(*DATA.tensors),
        Fetching(*DATA.tensors),
        Subset(Normalised(*DATA.tensors), range(50, 90)),
        ConcatDataset([DATA, Normalised(*DATA.tensors)]),
    ],
)
def test_subclasses_of_a_tensor_dataset_are_asked(data: Any) -> None:
    loader = DataLoader(data, batch_size=4)
    steps = ShardSampler(data, 8, shuffle=False).steps(2)
    ours = [step.fetch(p) for step in steps for p in range(2) if step.sizes[p] == 4]
    for got, want in zip(ours, loader, strict=False):
        assert same(got, want)


def test_a_tuple_of_tensors_with_a_collate_function() -> None:
    sampler = ShardSampler(DATA.tensors, 8, shuffle=False, collate_fn=stacked)
    x, y = next(iter(sampler.steps(2))).fetch(1)
    assert y.tolist() == [4, 5, 6, 7]
    assert x.flatten().tolist() == [4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("total", range(1, 40))
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 16])
def test_a_short_step_has_no_parts_of_one_sample(total: int, parts: int) -> None:
    for usual in (2 * parts, 3 * parts):
        sizes = part_sizes(total, parts, usual)
        assert (len(sizes), sum(sizes)) == (parts, total)
        assert 1 not in sizes or total == 1
        assert max(sizes) <= max(3, -(-total // parts))
        filled = [i for i, size in enumerate(sizes) if size]
        assert max(np.diff([*filled, parts])) <= -(-parts // len(filled))
    # Where all parts have a single sample, nothing changes.
    assert part_sizes(total, parts, parts) == even(total, parts)
