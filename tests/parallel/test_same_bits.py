"""The headline: not one bit of the result depends on who was slow."""

from __future__ import annotations

import pytest
import torch
from training import DELAYS, coded, everywhere, plain

import codedgrad
from codedgrad import codes

STEPS = 200


def selection_codes(n: int) -> list[codes.Code]:
    copies = min(2, n)
    divisor = next((d for d in range(2, n + 1) if n % d == 0), 1)
    return [
        codes.spread(n, micro=2, copies=min(2, max(1, n - 1))),
        codes.scheduled(n, copies=copies, order="cyclic"),
        codes.scheduled(n, copies=copies, order="staircase", micro=2),
        codes.fractional(n, copies=divisor),
    ]


@pytest.mark.parametrize("which", range(4))
def test_delays_change_no_bit(which: int) -> None:
    code = selection_codes(codedgrad.size())[which]
    calm, calm_losses = coded(code, STEPS)
    stormy, stormy_losses = coded(code, STEPS, faults=DELAYS)
    assert calm == stormy
    assert calm_losses == stormy_losses
    assert len(set(everywhere(stormy))) == 1
    if codedgrad.rank() == 0:  # the workers are the same, and share the cores
        truth, truth_losses = plain(code.tree, code.parts, STEPS)
        assert stormy == truth
        assert stormy_losses == truth_losses


def test_the_number_of_workers_changes_no_bit() -> None:
    """Eight micro-batches: the same tree for 1, 2, 4 and 8 workers."""
    n = codedgrad.size()
    if 8 % n:
        code = codes.spread(n, micro=2)  # the tree is its own; compare with the truth
        assert coded(code, 20)[0] == plain(code.tree, code.parts, 20)[0]
        return
    code = codes.spread(n, micro=8 // n)
    alone = codes.spread(1, micro=8)
    assert coded(code, 50, faults=DELAYS)[0] == plain(alone.tree, 8, 50)[0]


@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("overlap", [True, False])
def test_small_buckets_change_no_bit(bucket_mb: float | None, overlap: bool) -> None:
    code = codes.spread(codedgrad.size(), micro=4)
    how = {"bucket_mb": bucket_mb, "overlap": overlap}
    got = coded(code, 100, faults=DELAYS, **how)
    assert len(set(everywhere(got[0]))) == 1
    if codedgrad.rank() == 0:
        assert got == plain(code.tree, code.parts, 100)


@pytest.mark.parametrize("bucket_mb", [1.0, 25.0])
def test_large_buckets_change_no_bit(bucket_mb: float) -> None:
    """A gradient of 3 MB: several buckets of 1 MB, one of 25 MB."""
    code, wide = codes.spread(codedgrad.size(), micro=2), 6000
    got = [
        coded(code, 6, wide=wide, faults=faults, bucket_mb=bucket_mb)
        for faults in ("", DELAYS)
    ]
    assert got[0] == got[1]
    assert len(set(everywhere(got[0][0]))) == 1
    if codedgrad.rank() == 0:
        assert got[0] == plain(code.tree, code.parts, 6, wide=wide)


def test_overlap_changes_no_bit_with_any_code() -> None:
    for code in selection_codes(codedgrad.size()):
        overlapped = coded(code, 50, faults=DELAYS, bucket_mb=0.0005)
        assert overlapped == coded(code, 50, overlap=False)


def test_cyclic_repetition_agrees_to_rounding() -> None:
    n = codedgrad.size()
    code = codes.cyclic(n, stragglers=min(1, n - 1))
    _, losses = coded(code, 20, faults=DELAYS)
    _, truth = plain(code.tree, code.parts, 20)
    torch.testing.assert_close(losses[:5], truth[:5], rtol=1e-5, atol=1e-6)
