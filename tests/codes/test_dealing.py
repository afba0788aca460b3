"""Who computes the micro-batches of lost workers: each once, evenly, by a function."""

from __future__ import annotations

from itertools import combinations

import pytest

from codedgrad import codes
from codedgrad.codes.dealing import dealt


@pytest.mark.parametrize(
    "code",
    [codes.spread(5), codes.spread(3, micro=2), codes.scheduled(4, copies=3)],
    ids=lambda code: code.describe(),
)
def test_each_micro_batch_of_the_lost_is_dealt_once(code: codes.Code) -> None:
    for count in range(1, code.workers):
        for lost in combinations(range(code.workers), count):
            found = dealt(code, lost)
            assert dealt(code, list(reversed(lost))) == found
            assert not set(found) & set(lost)
            whole = [
                leaf
                for w in range(code.workers)
                for node in code.work[w][: code.required[w]]
                for leaf in range(code.tree.start[node], code.tree.stop[node])
                if w not in lost
            ]
            given = sorted(leaf for leaves in found.values() for leaf in leaves)
            assert given == sorted(set(range(code.parts)) - set(whole))


def test_the_work_is_even() -> None:
    code = codes.spread(4, micro=4)
    assert sorted(map(len, dealt(code, [3]).values())) == [1, 1, 2]
    assert sorted(map(len, dealt(code, [0, 3]).values())) == [4, 4]
    assert dealt(code, []) == {w: [] for w in range(4)}


def test_back_ups_come_first_where_it_is_even() -> None:
    code = codes.spread(5, micro=4)
    for lost in range(5):
        for worker, leaves in dealt(code, [lost]).items():
            assert set(leaves) <= set(code.work[worker])
