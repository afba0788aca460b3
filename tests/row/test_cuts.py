"""Where payloads are cut: everything once, no bucket too small, the stated sizes."""

from __future__ import annotations

import itertools
import random

import pytest

from codedgrad import ConfigError
from codedgrad.row.cuts import GRAIN, LATENCY_MB, at_ends, bucket_starts

MB = 1 << 20


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
@pytest.mark.parametrize("bucket_mb", [None, 0.0001, 0.01, 1.0, 25.0])
@pytest.mark.parametrize("count", [1024, 5000, 1 << 20, 10_000_019, 1 << 33])
def test_every_element_once_and_a_slice_for_every_worker(
    count: int, bucket_mb: float | None, workers: int
) -> None:
    if count > 1 << 30 and bucket_mb is not None and bucket_mb < 1:
        return  # millions of buckets
    starts = bucket_starts(count, 4, workers, bucket_mb)
    assert starts[0] == 0
    assert starts[-1] == count
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert min(sizes) >= GRAIN * workers
    assert 4 * max(sizes) <= 1 << 30


def test_the_first_and_the_last_are_small() -> None:
    starts = bucket_starts(10 * MB, 4, 4, 4.0)
    sizes = [4 * (b - a) / MB for a, b in itertools.pairwise(starts)]
    assert sizes[0] == sizes[-1] == 1.0
    assert len(sizes) == 12
    assert all(3.5 < s < 4.5 for s in sizes[1:-1])


def test_the_rule_for_the_size() -> None:
    assert len(bucket_starts(57_000, 4, 4, None)) == 2  # one bucket: nothing to gain
    assert 5 <= len(bucket_starts(MB, 4, 4, None)) <= 6
    usual = bucket_starts(10 * MB, 4, 4, None)
    step = 4 * (usual[2] - usual[1]) / MB
    assert step == pytest.approx((LATENCY_MB * 40) ** 0.5, rel=0.1)


def test_a_slow_start_wants_larger_buckets() -> None:
    counts = [len(bucket_starts(10 * MB, 4, 4, None, mb)) for mb in (1e-6, 0.1, 1, 100)]
    assert counts == sorted(counts, reverse=True)
    assert 60 < counts[0] < 70
    assert counts[-1] == 2  # one, that begins at once


@pytest.mark.parametrize("bucket_mb", [0.0, -1.0, 1024.5, float("nan")])
def test_sizes_out_of_range(bucket_mb: float) -> None:
    with pytest.raises(ConfigError, match="bucket_mb must be in"):
        bucket_starts(10_000, 4, 2, bucket_mb)


def test_cuts_move_to_the_ends_of_tensors() -> None:
    # Ten tensors of one million: all but the small buckets at both ends find one.
    ends = [1_000_000 * i for i in range(1, 11)]
    starts = bucket_starts(10_000_100, 4, 4, 4.0)
    moved = at_ends(starts, ends, 4, 4)
    assert set(moved[2:-2]) <= set(ends)
    assert moved == sorted(set(moved))
    assert (moved[0], moved[-1]) == (0, 10_000_100)


@pytest.mark.parametrize("seed", range(20))
def test_moved_cuts_are_still_cuts(seed: int) -> None:
    draw = random.Random(seed)
    ends = sorted(draw.sample(range(1, 3 * MB), 200))
    for bucket_mb in (0.001, 0.05, 1.0, None):
        starts = bucket_starts(3 * MB, 4, 5, bucket_mb)
        moved = at_ends(starts, ends, 4, 5)
        assert len(moved) == len(starts)
        sizes = [b - a for a, b in itertools.pairwise(moved)]
        assert min(sizes) >= GRAIN * 5
        assert sum(sizes) == 3 * MB
        usual = [b - a for a, b in itertools.pairwise(starts)]
        assert max(sizes) <= 2 * max(usual)


def test_no_tensors_no_moves() -> None:
    assert at_ends([0, 500, 1000], [], 4, 2) == [0, 500, 1000]
