"""The families against naive transcriptions of their papers."""

from __future__ import annotations

import numpy as np
import pytest
from references import cyclic_b, cyclic_h, fractional_b, scheduled_task

from codedgrad import codes
from codedgrad.errors import ConfigError


@pytest.mark.parametrize(("n", "s"), [(1, 0), (4, 1), (6, 1), (6, 2), (12, 3), (64, 7)])
def test_fractional_is_algorithm_1(n: int, s: int) -> None:
    code = codes.fractional(n, copies=s + 1)
    np.testing.assert_array_equal(code.matrix(), fractional_b(n, s))
    assert code.tolerance() == s


@pytest.mark.parametrize(("n", "s"), [(1, 0), (2, 1), (5, 2), (8, 3), (32, 5)])
def test_cyclic_is_algorithm_2(n: int, s: int) -> None:
    code = codes.cyclic(n, stragglers=s, seed=3)
    want = cyclic_b(n, s, cyclic_h(n, s, 3))
    np.testing.assert_allclose(code.matrix(), want, rtol=1e-6, atol=1e-9)
    assert code.tolerance() == s


@pytest.mark.parametrize("order", ["cyclic", "staircase"])
@pytest.mark.parametrize(("n", "r"), [(1, 1), (2, 2), (5, 3), (8, 8), (31, 4)])
def test_scheduled_is_the_papers_order(order: str, n: int, r: int) -> None:
    code = codes.scheduled(n, copies=r, order=order)
    for worker in range(n):
        want = [scheduled_task(order, n, worker + 1, j + 1) - 1 for j in range(r)]
        assert list(code.tree.start[list(code.work[worker])]) == want
    # A staircase over an odd ring may meet itself; the cyclic order never does.
    if order == "cyclic":
        assert code.tolerance() == r - 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize(("micro", "copies"), [(1, 1), (2, 2), (4, 2), (4, 3), (3, 5)])
def test_spread_has_that_many_backups_by_others(
    n: int, micro: int, copies: int
) -> None:
    code = codes.spread(n, micro=micro, copies=copies)
    assert code.tolerance() == min(copies, n - 1)
    for shard in range(n):
        assert code.work[shard][0] == code.tree.node(shard * micro, (shard + 1) * micro)
        for part in range(shard * micro, (shard + 1) * micro):
            backups = [w for w in range(n) if part in code.work[w][1:]]
            assert len(backups) == min(copies, n - 1)
            assert shard not in backups
    # Nobody is asked to help much more than another.
    lengths = {len(items) for items in code.work}
    assert len(lengths) == 1


def test_first_helpers_of_a_shard_are_different_workers() -> None:
    code = codes.spread(9, micro=4, copies=2)
    for shard in range(9):
        firsts = [
            worker
            for part in range(4 * shard, 4 * shard + 4)
            for worker in range(9)
            if part in code.work[worker][1:5]
        ]
        assert len(set(firsts)) == 4


def test_uncoded_needs_everybody() -> None:
    code = codes.uncoded(3, micro=2)
    assert code.tolerance() == 0
    assert code.decode(range(3)).covers
    assert not code.decode([0, 2]).covers


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("spread", codes.spread(6)),
        ("spread:micro=8,copies=1", codes.spread(6, micro=8, copies=1)),
        ("scheduled:order=staircase", codes.scheduled(6, order="staircase")),
        (" cyclic:stragglers=2", codes.cyclic(6, stragglers=2)),
    ],
)
def test_parse(text: str, want: codes.Code) -> None:
    assert codes.parse(text, 6) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sprad", "no code 'sprad'; there are uncoded, spread"),
        ("spread:micros=4", r"no setting of spread; write spread:micro=\.\.\."),
        ("spread:micro=0", "micro must be an integer of at least 1, got 0"),
        ("spread:micro=two", "micro must be an integer"),
        ("fractional:copies=4", r"possible: \[1, 2, 3, 6\]\. codes\.uncoded\(6\)"),
        ("scheduled:copies=7", "needs as many workers"),
        ("scheduled:order=up", "order must be one of"),
        ("cyclic:stragglers=6", "stragglers must be 0 to 5"),
    ],
)
def test_parse_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codes.parse(text, 6)
