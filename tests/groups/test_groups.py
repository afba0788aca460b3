"""How processes are cut into groups, and a row among a group's processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from codedgrad import codes
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError
from codedgrad.groups.membership import partition
from codedgrad.groups.passes import division, fitting


def test_groups_by_number_and_by_machine() -> None:
    assert partition(2, [0, 0, 0, 0]) == [[0, 1], [2, 3]]
    assert partition(1, [0, 1]) == [[0], [1]]
    assert partition("node", [0, 0, 1, 1]) == [[0, 1], [2, 3]]
    assert partition("node", [0, 1, 0, 1]) == [[0, 2], [1, 3]]  # placed in turns
    assert partition(2, [0, 0, 0, 0, 1, 1]) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("spec", "nodes", "words"),
    [
        (2, [0] * 5, "5 processes into groups of unequal sizes, 2, 2, 1 by group"),
        ("node", [0, 0, 0, 1], "unequal sizes, 3, 1 by group; start as many"),
        (2, [0, 1, 0, 1], r"several machines into group 0 \(ranks \[0, 1\]\)"),
        ("host", [0], 'must be "node", a number of processes, or None'),
        (0, [0], "got 0"),
        (True, [0], "got True"),
    ],
)
def test_what_does_not_fit(spec: str | int, nodes: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        partition(spec, nodes)


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
