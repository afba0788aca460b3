"""Numbers in the elements of a row, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from codedgrad.row import metrics

WORD = 0x800123
EXACT = [0, 1, -1, 4095, 4096, -4097, (1 << 24) + 1, (1 << 36) - 1, 0.5, 2.0**-12]
OTHERS = [math.pi, -1e-20, 1e-8, 2.0**36, 1e30, 123456.789]


@pytest.mark.parametrize("value", [*EXACT, *OTHERS])
def test_limbs_make_up_the_number(value: float) -> None:
    found = metrics.limbs(value)
    assert all(abs(limb) < 1 << 12 and limb == int(limb) for limb in found[:-1])
    if value in EXACT:
        assert found[-1] == 0.0
    total = metrics.read(row([value])).values[0]
    assert total == pytest.approx(value, rel=1e-7)
    assert total == value or value not in EXACT


def row(values: list[float]) -> torch.Tensor:
    return torch.from_numpy(metrics.elements(WORD, 3.0, values)).float()


def test_sums_of_counts_are_exact_in_any_order() -> None:
    generator = np.random.default_rng(1)
    counts = generator.integers(0, 1 << 36, (4096, metrics.MOST)).tolist()
    rows = torch.stack([row(c) for c in counts])
    for order in (torch.arange(4096), torch.randperm(4096)):
        total = torch.zeros(metrics.ELEMENTS)
        for i in order:
            total += rows[i]
        sums = metrics.read(total)
        assert sums.values == [
            float(sum(column)) for column in zip(*counts, strict=True)
        ]
        assert sums.weight == 3.0 * 4096
        assert sums.words is not None
        assert sums.words.ones == WORD
        assert not sums.words.disputed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mean_that_counts_is_a_count_again(dtype: torch.dtype) -> None:
    eps = 2.0 * torch.finfo(dtype).eps
    for n in (3, 7, 48, 96, 1000):
        for k in range(min(n, 100) + 1):
            mean = float((torch.tensor(float(k), dtype=torch.double) / n).to(dtype))
            if eps * k < 0.5:
                assert metrics.rounded(mean * n, eps) == k
    assert metrics.rounded(math.pi, 1e-7) == math.pi
    assert metrics.rounded(1e-9, 1e-7) == 1e-9
    assert math.isnan(metrics.rounded(math.nan, 1e-7))


def test_passes_with_other_names_are_disputed() -> None:
    other = torch.from_numpy(metrics.elements(WORD + 2, 1.0, [1.0])).float()
    none = torch.from_numpy(metrics.elements(0)).float()
    for one, two, disputed in ((row([1.0]), other, True), (row([1.0]), none, True)):
        words = metrics.read(one + 0.25 * two).words
        assert words is not None
        assert bool(words.disputed) is disputed
    words = metrics.read(none + none).words
    assert words is not None
    assert words.ones == 0
    assert metrics.read(torch.zeros(metrics.ELEMENTS)).words is None
