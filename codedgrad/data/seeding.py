"""The random numbers of a pass and of a sample.

Those of a pass depend on (seed, step, part) alone, and those of a sample on (seed,
epoch, index), so they are the same on whichever worker the pass runs, and in whichever
process the sample is read.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.random import mtrand

if TYPE_CHECKING:
    from collections.abc import Iterator

_MASK = (1 << 64) - 1
_SAMPLE = 0x5A3B1E  # tells the stream of a sample from that of a pass
_ORDER = 0x0D5E81  # and from that of the order of an epoch
_numpy_inside = np.random.MT19937(0)
_numpy_reading = np.random.MT19937(0)
_numpy_step = np.random.MT19937(0)


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


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Set the generators for reading one sample of a dataset; not those of devices."""
    _seed_host(spread_bits(seed, epoch, index, _SAMPLE))


def seed_order(seed: int, epoch: int) -> None:
    """Set the generators for drawing the order of an epoch; not those of devices."""
    _seed_host(spread_bits(seed, epoch, _ORDER))


def _seed_host(word: int) -> None:
    torch.default_generator.manual_seed(word)
    np.random.seed(_mix(word) & 0xFFFFFFFF)  # noqa: NPY002 (user code draws from it)
    random.seed(_mix(word + 1))


@contextmanager
def reading_rng() -> Iterator[None]:
    """Inside, the generators belong to samples; see `own_rng`, inside which it may be.

    Those of devices are left alone.
    """
    with _numbers_of(_numpy_reading):
        yield


def drawn_since(before: tuple[Any, ...]) -> bool:
    """Returns whether a number was drawn since `states` returned `before`."""
    now = states()
    return not torch.equal(now[0], before[0]) or now[1:] != before[1:]


def states() -> tuple[Any, ...]:
    """Returns the states of the generators, inside `reading_rng`."""
    numpy_state = _numpy_reading.state["state"]
    key = numpy_state["key"].tobytes(), numpy_state["pos"]
    return torch.default_generator.get_state(), key, random.getstate()


@contextmanager
def own_rng() -> Iterator[None]:
    """Inside, the generators belong to the passes; afterwards they are as before.

    This takes about 15 us.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with _numbers_of(_numpy_inside):
            yield
    finally:
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _numbers_of(ours: Any) -> Iterator[None]:
    """Inside, numpy draws from `ours`; all host generators are put back afterwards."""
    outer, outer_python = torch.default_generator.get_state(), random.getstate()
    # numpy gets a generator of ours, since saving its global state takes 100 us.
    outer_numpy = mtrand.get_bit_generator()
    mtrand.set_bit_generator(ours)
    try:
        yield
    finally:
        torch.default_generator.set_state(outer)
        mtrand.set_bit_generator(outer_numpy)
        random.setstate(outer_python)


class OuterNumbers:
    """Keeps the user's generators while those of the passes are in their place.

    A loop that is not ours draws numbers between its steps, too: noise on weights, the
    order of a loader, the seed of an evaluation. Where workers draw the same ones
    without codedgrad, they have to with it.
    """

    def __init__(self) -> None:
        """Begin with the user's in their place."""
        self._kept: tuple[Any, ...] | None = None

    def keep(self) -> None:
        """Keep the user's, unless they are kept already."""
        if self._kept is None:
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
            host = torch.default_generator.get_state(), random.getstate()
            self._kept = *host, cuda, mtrand.get_bit_generator()
            mtrand.set_bit_generator(_numpy_step)

    def put_back(self) -> None:
        """Put the user's back into their place, if they are kept."""
        if self._kept is not None:
            ours, python, cuda, numpy = self._kept
            self._kept = None
            torch.default_generator.set_state(ours)
            random.setstate(python)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            if mtrand.get_bit_generator() is _numpy_step:
                mtrand.set_bit_generator(numpy)
