"""Check bits: exact in any sum of rows, and silent about estimates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from codedgrad.row import checks

WORDS = [0, 1, checks.ALL, 0xA5A5A5, 1 << (checks.BITS - 1)]


def decoded(
    words: list[int], weights: list[float], scales: object = None
) -> torch.Tensor:
    """The sum of micro-batches in float32, as rows add them up."""
    total = np.zeros(checks.ELEMENTS, dtype=np.float32)
    for word, weight in zip(words, weights, strict=True):
        total += checks.elements(word, scales).astype(np.float32) * np.float32(weight)
    return torch.from_numpy(total)


@pytest.mark.parametrize("word", WORDS)
def test_elements_are_a_bit_and_its_opposite(word: int) -> None:
    pairs = checks.elements(word).reshape(checks.BITS, 2)
    assert [int(b) for b in pairs[:, 0]] == [word >> i & 1 for i in range(checks.BITS)]
    np.testing.assert_array_equal(pairs.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    "weights", [[1.0], [1 / 3] * 3, [0.1, 0.9], [1e-7, 1.0], [2.5, -1.5], [1e30, 1.0]]
)
@pytest.mark.parametrize("word", WORDS)
def test_who_agrees_is_never_accused(word: int, weights: list[float]) -> None:
    total = decoded([word] * len(weights), weights)
    assert checks.says(total, word)
    assert checks.read(total) == (word, checks.ALL ^ word)
    assert not checks.says(total, word ^ 1)


@pytest.mark.parametrize("bit", range(checks.BITS))
def test_every_bit_that_differs_is_seen(bit: int) -> None:
    for word, worker in itertools.product(WORDS, range(3)):
        words = [word] * 3
        words[worker] ^= 1 << bit
        for weights in ([0.5, 0.25, 0.25], [1e-6, 1e-6, 1 - 2e-6], [0.7, 0.8, -0.5]):
            reading = checks.read(decoded(words, weights))
            assert reading is not None
            assert reading.disputed == 1 << bit


def test_a_sum_without_rows_says_nothing() -> None:
    assert checks.read(torch.zeros(checks.ELEMENTS)) is None
    assert checks.read(torch.full((checks.ELEMENTS,), torch.nan)) is None


def test_scales_never_come_again() -> None:
    scales = np.stack([checks.scales_of(step) for step in range(2000)])
    assert scales.min() >= 0.5
    assert scales.max() < 1.5
    for lag in (1, 2, 7, 100):
        assert np.abs(scales[lag:] - scales[:-lag]).max(axis=1).min() > 0.2


@pytest.mark.parametrize("exact", [True, False])
def test_estimates(exact: bool) -> None:
    """With memory of other steps in a sum nothing is said, and else everything."""
    draw = np.random.default_rng(1)
    judged = 0
    for step in range(1, 300):
        scales = checks.scales_of(step)
        now, before = (int(draw.integers(checks.ALL)) for _ in range(2))
        weights = [0.5, 0.5] if step % 2 else [130.0, 7.0]  # shares, or counts
        total = decoded([now, now], weights, scales)
        if not exact:  # a share is taken from the memory, of any size and sign
            share = draw.normal() * 10.0 ** draw.integers(-9, 1)
            memory = decoded([before], [1.0], checks.scales_of(step - 1))
            total = total * (1 - share) + memory * share * sum(weights)
        reading = checks.read(total, scales)
        if reading is not None:
            judged += 1
            assert reading == (now, checks.ALL ^ now)
        differ = checks.read(decoded([now, now ^ 4], [0.99, 0.01], scales), scales)
        assert differ is not None
        assert differ.disputed == 4
    assert judged == 299 if exact else 0 < judged < 299
