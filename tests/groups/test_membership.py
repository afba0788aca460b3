"""How a job's processes are cut into groups."""

from __future__ import annotations

import pytest

from codedgrad.errors import ConfigError
from codedgrad.groups.membership import partition


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
