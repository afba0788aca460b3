"""Code: validation, identity, numbering of rows, the summation tree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from references import join

from codedgrad import codes
from codedgrad.codes import Row, SumTree
from codedgrad.errors import ConfigError

CODE = codes.spread(4, micro=2)


def test_fingerprint_is_of_the_content() -> None:
    assert codes.spread(4, micro=2).fingerprint() == CODE.fingerprint()
    assert codes.spread(4, micro=2) == CODE
    assert hash(codes.spread(4, micro=2)) == hash(CODE)
    others = [codes.spread(5, micro=2), codes.spread(4), codes.spread(4, 2, 1)]
    others += [codes.cyclic(4, 1, seed=0), codes.cyclic(4, 1, seed=1)]
    assert len({c.fingerprint() for c in [CODE, *others]}) == len(others) + 1


def test_rows_are_numbered_worker_by_worker() -> None:
    seen = [CODE.row_owner(i) for i in range(CODE.row_count)]
    assert seen == sorted(set(seen))
    assert [CODE.row_index(w, r) for w, r in seen] == list(range(CODE.row_count))
    with pytest.raises(ConfigError, match="no row"):
        CODE.row_owner(CODE.row_count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 5}, "one entry for each of 5 workers"),
        ({"micro": 3}, "the tree has 8 parts, the code 12"),
        ({"required": (1, 1, 0, 1)}, r"cannot decode with nobody late.*\[4, 5\]"),
        ({"required": (1, 1, 99, 1)}, "worker 2 is required to do 99"),
        ({"work": ((99,), *CODE.work[1:])}, "outside the summation tree"),
        (
            {"rows": ((Row(0, (1,), (1.0,)),), *CODE.rows[1:])},
            "rows combine finished items only",
        ),
    ],
)
def test_validation(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CODE, **change)  # type: ignore[arg-type]


def test_wrong_mask() -> None:
    with pytest.raises(ConfigError, match="arrived must be bool"):
        CODE.decode(np.ones(3, bool))


@pytest.mark.parametrize("levels", [(1,), (5,), (4, 4), (3, 5), (2, 2, 3), (4, 7)])
def test_tree_sums_in_the_defined_order(levels: tuple[int, ...]) -> None:
    tree = SumTree.of_levels(levels)
    values = np.random.default_rng(0).standard_normal((tree.parts, 3)).astype("f4")
    partial = list(values)
    for level in levels:
        partial = [join(partial[i : i + level]) for i in range(0, len(partial), level)]
    np.testing.assert_array_equal(tree.sum(values), partial[0])


def test_powers_of_two_make_one_tree_whatever_the_workers() -> None:
    trees = [SumTree.of_levels((8 // n, n)) for n in (1, 2, 4, 8)]
    spans = [set(zip(t.start.tolist(), t.stop.tolist(), strict=True)) for t in trees]
    assert all(s == spans[0] for s in spans)


def test_a_node_stands_for_its_subtree() -> None:
    tree = SumTree.of_levels((2, 3))
    known = tree.satisfied([tree.node(0, 2), 2, 3, tree.node(4, 6)])
    assert known[tree.root]
    assert not tree.satisfied([0, 2, 3, 4, 5])[tree.root]
    with pytest.raises(ConfigError, match="no node"):
        tree.node(1, 3)
