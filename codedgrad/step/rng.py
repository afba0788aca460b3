"""The random numbers of a pass.

They depend on (seed, step, part) alone, so they are the same on whichever worker the
pass runs.
"""

from __future__ import annotations

import random
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.random import mtrand

if TYPE_CHECKING:
    from collections.abc import Iterator

_MASK = (1 << 64) - 1
_numpy_inside = np.random.MT19937(0)


def _mix(value: int) -> int:
    """Returns unrelated outputs for neighbouring inputs (SplitMix64, Steele 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def spread_bits(first: int, *values: int) -> int:
    """Returns 64 bits that look random and follow from the values, in their order."""
    word = _mix(first & _MASK)
    for value in values:
        word = _mix(word ^ (value & _MASK))
    return word


def seed_pass(seed: int, step: int, part: int) -> None:
    """Set the generators of torch, numpy (the global one) and `random`."""
    word = spread_bits(seed, step, part)
    torch.default_generator.manual_seed(word)  # torch.manual_seed takes 200 us
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word)
    np.random.seed(_mix(word) & 0xFFFFFFFF)  # noqa: NPY002 (user code draws from it)
    random.seed(_mix(word + 1))


class Seeds:
    """Seeds the forwards of a loop that is not ours, some of which are made twice.

    Where a whole model is checkpointed, its forward is made again in the backward, with
    the generators as they were before it. So we keep them, to know it again.
    """

    def __init__(self, seed: int) -> None:
        """Takes the run's seed."""
        self._seed = seed
        self._recent: deque[tuple[torch.Tensor, int, int]] = deque(maxlen=32)

    def next(self, step: int, part: int) -> None:
        """Seeds a forward."""
        before = torch.default_generator.get_state()
        self._recent.append((before, step, part))
        seed_pass(self._seed, step, part)

    def repeat(self) -> None:
        """Seeds a forward as it was seeded before, if it was."""
        now = torch.default_generator.get_state()
        for before, step, part in self._recent:
            if torch.equal(before, now):
                seed_pass(self._seed, step, part)
                return


@contextmanager
def own_rng() -> Iterator[None]:
    """Inside, the generators belong to the passes; afterwards they are as before.

    This takes about 15 us.
    """
    outer = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    outer_python = random.getstate()
    # numpy gets a generator of ours, since saving its global state takes 100 us.
    outer_numpy = mtrand.get_bit_generator()
    mtrand.set_bit_generator(_numpy_inside)
    try:
        yield
    finally:
        torch.default_generator.set_state(outer)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        mtrand.set_bit_generator(outer_numpy)
        random.setstate(outer_python)
