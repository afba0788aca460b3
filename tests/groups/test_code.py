"""How a row is divided among a group's processes, and which codes allow that."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError
from codedgrad.groups.code import division, fitting


@pytest.mark.parametrize("micro", [2, 3, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
def test_a_division_has_every_leaf_once_and_the_largest_nodes(
    micro: int, members: int
) -> None:
    tree = SumTree.of_levels((micro, 3))
    node = tree.node(micro, 2 * micro)
    parts = division(tree, node, members)
    assert len(parts) == members
    leaves = [
        leaf
        for nodes in parts
        for n in nodes
        for leaf in range(tree.start[n], tree.stop[n])
    ]
    assert leaves == list(range(micro, 2 * micro))
    counts = [sum(int(tree.stop[n] - tree.start[n]) for n in nodes) for nodes in parts]
    assert max(counts) - min(counts) <= 1
    for nodes in parts:  # no two of them have a parent that both belong to
        parents = [int(tree.parent[n]) for n in nodes]
        assert len(set(parents)) == len(parents)
    power = np.log2([micro, members]) % 1 == 0
    if power.all() and members <= micro:
        assert all(len(nodes) == 1 for nodes in parts)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (codes.spread(8), r"8 workers and the job has 2 local groups of 4 processes"),
        (codes.spread(8), r"for the number of groups: codes.spread\(2, micro=4\)"),
        (codes.spread(2, micro=3), r"3 micro-batch\(es\) at a time, too few for the 4"),
        (codes.cyclic(2), r"with more, codes.spread\(2, micro=4\), or smaller groups"),
    ],
)
def test_codes_that_do_not_fit(code: codes.Code, words: str) -> None:
    group = SimpleNamespace(count=2, size=4)
    with pytest.raises(ConfigError, match=words):
        fitting(code, 2, group)  # type: ignore[arg-type]


def test_the_default_code_has_a_micro_batch_for_every_process() -> None:
    for size, micro in ((2, 4), (4, 4), (5, 8), (8, 8), (9, 16)):
        group = SimpleNamespace(count=3, size=size)
        assert fitting(None, 3, group) == codes.spread(3, micro=micro)  # type: ignore[arg-type]
    assert fitting(None, 3, None) == codes.spread(3)


@pytest.mark.parametrize(
    ("workers", "pieces"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (8, 4), (64, 4)]
)
def test_a_late_worker_has_a_piece_for_each_helper(workers: int, pieces: int) -> None:
    assert codes.usual_pieces(workers) == pieces
    code = fitting(None, workers, None, whole=True)
    assert code == codes.spread(workers, micro=pieces)
    late, helped = 0, []
    for helper in range(1, workers):  # the first of each list that is the late one's
        shards = [int(code.tree.start[i]) // pieces for i in code.work[helper][1:]]
        helped.append(
            code.work[helper][1:][shards.index(late)] if late in shards else -1
        )
    assert {*range(pieces)} <= {*helped, 0}
    assert len(set(helped) - {-1}) == min(pieces, workers - 1)
