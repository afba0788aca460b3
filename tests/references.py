"""Naive transcriptions of the papers, slow and obvious: the truth for tests."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.data.seeding import own_rng, seed_pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray


def fractional_b(n: int, s: int) -> NDArray[np.float64]:
    """Tandon et al. 2017, Algorithm 1: B_frac, s + 1 divides n.

    The paper stacks s + 1 copies of the block of disjoint rows; here worker j's
    group is j // (s + 1), which is a permutation of the workers.
    """
    block = np.zeros((n // (s + 1), n))
    for a in range(n // (s + 1)):
        for b in range(s + 1):
            block[a, a * (s + 1) + b] = 1.0
    return np.repeat(block, s + 1, axis=0)


def cyclic_b(n: int, s: int, h: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tandon et al. 2017, Algorithm 2: B with B's rows in the null space of H [s, n].

    for i = 1 .. n: j = i mod n, support j .. j + s; B(j, j) = 1,
    B(j, rest) = -H(:, rest) \\ H(:, j).
    """
    b = np.zeros((n, n))
    for i in range(n):
        rest = [(i + k) % n for k in range(1, s + 1)]
        b[i, i] = 1.0
        if s:
            b[i, rest] = -np.linalg.inv(h[:, rest]) @ h[:, i]
    return b


def cyclic_h(n: int, s: int, seed: int) -> NDArray[np.float64]:
    """H of Algorithm 2: normal entries, the last column minus the sum of the rest."""
    h = np.random.default_rng(seed).standard_normal((s, n))
    for row in h:
        row[n - 1] = -sum(row[: n - 1])
    return h


def scheduled_task(order: str, n: int, i: int, j: int) -> int:
    """Amiri and Gunduz 2019, eqs. (27), (33): task j of worker i, all from 1.

    g(m) brings m into 1 .. n. The staircase's direction there alternates from worker
    1 upwards; worker 1 is our worker 0.
    """

    def g(m: int) -> int:
        while m < 1:
            m += n
        while m > n:
            m -= n
        return m

    if order == "cyclic":
        return g(i + j - 1)
    return g(i + (-1) ** (i - 1) * (j - 1))


def covered(spans: Iterable[tuple[int, int]], parts: int) -> bool:
    """Whether the union of [start, stop) is everything."""
    seen = [False] * parts
    for start, stop in spans:
        for part in range(start, stop):
            seen[part] = True
    return all(seen)


def in_span(b: NDArray[np.float64]) -> bool:
    """Whether all-ones lies in the row span, by rank."""
    if not len(b):
        return False
    ones = np.ones((1, b.shape[1]))
    rank = np.linalg.matrix_rank(b, tol=1e-8)
    return bool(np.linalg.matrix_rank(np.vstack([b, ones]), tol=1e-8) == rank)


def subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    """Every subset."""
    for size in range(len(items) + 1):
        yield from combinations(items, size)


def join(values: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One level of the summation tree: the left child is the largest power of two."""
    if len(values) == 1:
        return values[0]
    mid = 1
    while mid * 2 < len(values):
        mid *= 2
    left: NDArray[np.float32] = join(values[:mid]) + join(values[mid:])
    return left


@contextmanager
def pass_rng(seed: int, step: int, part: int) -> Iterator[None]:
    """The random numbers of one pass."""
    with own_rng():
        seed_pass(seed, step, part)
        yield
