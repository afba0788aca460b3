"""The order of additions depends on the batches alone; every batch has an owner."""

from __future__ import annotations

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError
from codedgrad.inference.helping import Helping
from codedgrad.inference.parts import Shares, check_code, cut, leaves_for, middle_of

BATCHES = [1, 2, 3, 5, 7, 16, 17, 31, 100, 257]


def halved(values: np.ndarray, first: int, stop: int) -> float:
    """Add a run of batches up in the order that parts.py defines, naively."""
    if stop - first == 1:
        return float(values[first])
    middle = middle_of(first, stop)
    return halved(values, first, middle) + halved(values, middle, stop)


@pytest.mark.parametrize("batches", BATCHES)
def test_the_number_of_workers_changes_no_bit(batches: int) -> None:
    values = np.random.default_rng(batches).normal(size=batches) * 1e3
    for workers in (1, 2, 3, 5, 8, 40):
        tree = SumTree.of_levels((leaves_for(workers),))
        parts = cut(tree, batches)
        # Every part at its node, and above it as the engine adds.
        known = {p.node: halved(values, p.first, p.stop) for p in parts}
        for node in range(len(tree)):
            if node not in known and tree.left[node] >= 0:
                left, right = known.get(tree.left[node]), known.get(tree.right[node])
                if left is not None and right is not None:
                    known[node] = left + right
        assert known[tree.root] == halved(values, 0, batches)


@pytest.mark.parametrize("batches", BATCHES)
def test_parts_are_all_batches_in_order(batches: int) -> None:
    parts = cut(SumTree.of_levels((32,)), batches)
    assert [b for p in parts for b in range(p.first, p.stop)] == list(range(batches))
    assert len(parts) == min(32, batches) or batches < 32
    sizes = [p.stop - p.first for p in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("workers", [1, 2, 5, 8])
@pytest.mark.parametrize("batches", BATCHES)
def test_everybody_has_about_as_much(workers: int, batches: int) -> None:
    parts = cut(SumTree.of_levels((leaves_for(workers),)), batches)
    shares = [Shares(parts, w, workers, None) for w in range(workers)]
    assert sorted(i for s in shares for i in s.own) == list(range(len(parts)))
    own = [sum(parts[i].stop - parts[i].first for i in s.own) for s in shares]
    most = max(p.stop - p.first for p in parts)
    assert max(own) <= -(-batches // workers) + most - 1
    for share in shares:
        assert sorted([*share.own, *share.others]) == list(range(len(parts)))


def test_a_code_says_who_helps_whom() -> None:
    parts = cut(SumTree.of_levels((64,)), 100)
    alone = Shares(parts, 1, 4, codes.uncoded(4))
    assert alone.others == []
    pairs = Shares(parts, 1, 4, codes.fractional(4, copies=2))
    assert {tuple(o) for o in pairs.owners} <= {(0, 1), (2, 3), (0, 2), (1, 3)}
    assert all(1 in pairs.owners[i] for i in pairs.own)
    some = Shares(parts, 0, 4, codes.spread(4, micro=1, copies=1))
    helped = {some.owners[i][0] for i in some.others}
    assert helped == {3}
    with pytest.raises(ConfigError, match="for 3 workers, and the job has 4"):
        check_code(codes.spread(3), 4)
    with pytest.raises(ConfigError, match="right up to rounding"):
        check_code(codes.cyclic(4, stragglers=1), 4)


def test_helpers_take_what_is_not_begun_and_not_all_the_same() -> None:
    workers = 4
    parts = cut(SumTree.of_levels((64,)), 640)
    late = Shares(parts, 2, workers, None).own
    nodes = {parts[i].node for i in late}
    chosen = []
    for worker in (0, 1, 3):
        helping = Helping(Shares(parts, worker, workers, None), worker, workers)
        part, missing = helping.next(lambda node: node not in nodes, 0.0, 0.01)
        assert missing
        chosen.append(part)
    assert len(set(chosen)) == 3
    assert late[0] not in chosen  # its owner has it in its hands
    last = {parts[late[0]].node}
    assert helping.next(lambda node: node not in last, 0.05, 0.01) == (None, True)
    assert helping.next(lambda node: node not in last, 0.2, 0.01) == (late[0], True)
    assert helping.next(lambda _: True, 0.3, 0.01) == (None, False)
