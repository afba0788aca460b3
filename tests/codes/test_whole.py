"""Codes whose helpers take whole shards."""

from __future__ import annotations

import pytest

from codedgrad import codes
from codedgrad.codes.whole import in_shards


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_every_shard_has_as_many_back_ups(
    workers: int, copies: int, micro: int
) -> None:
    code = codes.spread(workers, micro=micro, copies=copies)
    whole = in_shards(code)
    holders = dict.fromkeys(range(workers), 0)
    for worker, items in enumerate(whole.work):
        assert items[0] == code.work[worker][0]
        assert len(set(items)) == len(items)
        for node in items:
            start, stop = int(whole.tree.start[node]), int(whole.tree.stop[node])
            assert (start % micro, stop - start) == (0, micro)
            holders[start // micro] += 1
    assert set(holders.values()) == {1 + min(copies, workers - 1)}
    assert whole.tolerance() == code.tolerance()
    assert in_shards(whole) is whole


@pytest.mark.parametrize(
    "code",
    [
        codes.uncoded(4, micro=4),
        codes.scheduled(4, copies=2, micro=2),
        codes.fractional(4, copies=2, micro=2),
        codes.cyclic(4),
    ],
)
def test_other_codes_stay_as_they_are(code: codes.Code) -> None:
    assert in_shards(code) is code
