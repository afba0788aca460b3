"""Decoding: every arrival set of small codes, random ones of large codes."""

from __future__ import annotations

import numpy as np
import pytest
from references import covered, in_span, subsets

from codedgrad import codes

SMALL = [
    codes.uncoded(1),
    codes.uncoded(4, micro=2),
    codes.spread(1),
    codes.spread(2, micro=2),
    codes.spread(3, micro=2, copies=2),
    codes.spread(4, micro=2, copies=1),
    codes.scheduled(4, copies=2, micro=2),
    codes.scheduled(5, copies=2, order="staircase"),
    codes.scheduled(4, copies=3, order="staircase"),
    codes.fractional(6, copies=2),
    codes.fractional(8, copies=4),
    codes.cyclic(6, stragglers=2),
    codes.cyclic(8, stragglers=1),
]


def spans(code: codes.Code, rows: tuple[int, ...]) -> list[tuple[int, int]]:
    nodes = [code.row_node(*code.row_owner(r)) for r in rows]
    return [(int(code.tree.start[x]), int(code.tree.stop[x])) for x in nodes]


@pytest.mark.parametrize("code", SMALL, ids=lambda c: c.describe())
def test_every_arrival_set(code: codes.Code) -> None:
    assert code.row_count <= 15
    b = code.matrix()
    for rows in subsets(list(range(code.row_count))):
        decoding = code.decode(rows)
        used = decoding.weights[list(rows)]
        # Only rows that arrived have weights, and these leave the deficit.
        assert np.count_nonzero(decoding.weights) == np.count_nonzero(used)
        np.testing.assert_allclose(
            1.0 - used @ b[list(rows)], decoding.deficit, atol=1e-7
        )
        if code.linear:
            assert decoding.covers == in_span(b[list(rows)])
        else:
            assert decoding.covers == covered(spans(code, rows), code.parts)
            assert set(decoding.weights) <= {0.0, 1.0}


@pytest.mark.parametrize("code", SMALL, ids=lambda c: c.describe())
def test_tolerance_is_what_loss_of_workers_shows(code: codes.Code) -> None:
    def decodes_without(lost: tuple[int, ...]) -> bool:
        left = [
            r for r in range(code.row_count) if code.row_owner(r)[0] not in set(lost)
        ]
        return code.decode(left).covers

    sets = list(subsets(list(range(code.workers))))
    s = code.tolerance()
    assert all(decodes_without(lost) for lost in sets if len(lost) <= s)
    assert not all(decodes_without(lost) for lost in sets if len(lost) == s + 1)


@pytest.mark.parametrize(
    "code",
    [
        codes.spread(256),
        codes.spread(100, micro=3, copies=3),
        codes.scheduled(200, copies=3, order="staircase"),
        codes.fractional(256, copies=4),
        codes.cyclic(256, stragglers=4),
    ],
    ids=lambda c: c.describe(),
)
def test_random_arrivals_of_large_codes(code: codes.Code) -> None:
    random = np.random.default_rng(code.workers)
    workers = np.array([code.row_owner(r)[0] for r in range(code.row_count)])
    required = np.array(
        [
            code.rows[w][r].after < code.required[w]
            for w, r in map(code.row_owner, range(code.row_count))
        ]
    )
    assert code.decode(required).covers
    s = code.tolerance()
    for _ in range(20):
        lost = random.choice(code.workers, s, replace=False)
        assert code.decode(~np.isin(workers, lost)).covers
        mask = random.random(code.row_count) < random.random()
        decoding = code.decode(mask)
        if not code.linear:
            rows = tuple(np.flatnonzero(mask).tolist())
            assert decoding.covers == covered(spans(code, rows), code.parts)
            assert not decoding.weights[~mask].any()


@pytest.mark.parametrize("code", SMALL[:-2], ids=lambda c: c.describe())
def test_selection_agrees_with_least_squares(code: codes.Code) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        mask = random.random(code.row_count) < 0.8
        assert code.decode(mask).covers == code.decode_reference(mask).covers


def test_decoding_is_cached() -> None:
    code = codes.cyclic(6, stragglers=1)
    assert code.decode([0, 1, 2, 3, 4]) is code.decode([4, 3, 2, 1, 0])
