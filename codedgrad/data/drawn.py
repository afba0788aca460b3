"""The order of an epoch's samples: a permutation of ours, or what a sampler gives.

A sampler of torch's kind draws from the global generators, or from one of its own. Both
are seeded from (seed, epoch) while it gives the order of an epoch, so that this is the
same on all workers, and in a run that is resumed.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler

from codedgrad.data.order import order_checksum, permutation
from codedgrad.data.seeding import reading_rng, seed_order, spread_bits
from codedgrad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

_MOST = 1 << 31  # places of an order; a sampler that gives more never ends


class Order:
    """The order of the samples of each epoch.

    Attributes:
        size: the number of samples of the dataset.
        seed: seed of the orders.
        shuffle: whether they are permutations, where there is no sampler.
        whose: names the sampler in messages; "" without one.
    """

    def __init__(
        self, size: int, seed: int, *, shuffle: bool, sampler: Iterable[int] | None
    ) -> None:
        """Take the sampler, if there is one.

        Raises:
            ConfigError: it cannot be one for all workers together.
        """
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self._sampler = sampler
        self.whose = "" if sampler is None else f" from {type(sampler).__name__}"
        self._last: tuple[int, NDArray[np.int64], int] | None = None
        if sampler is None:
            return
        if isinstance(sampler, DistributedSampler) or hasattr(sampler, "num_replicas"):
            raise ConfigError(
                f"sampler= is a {type(sampler).__name__}, which deals its samples "
                f"among the workers; codedgrad does that. Give one that has all "
                f"samples of an epoch, or none"
            )
        if not hasattr(sampler, "__iter__") or hasattr(sampler, "__next__"):
            raise ConfigError(
                f"sampler= must give an order in every epoch, like a Sampler of torch; "
                f"got {type(sampler).__name__}"
            )
        self._generators = [(g, g.initial_seed()) for g in _generators_of(sampler)]

    def of(self, epoch: int) -> NDArray[np.int64]:
        """Return the numbers of an epoch's samples, in their order.

        A number is the index of a sample. Where a sampler gives an index once more in
        the same epoch, `size` is added each time, so that numbers differ, and random
        augmentation does.

        Raises:
            ConfigError: the sampler gives something else than indices.
            DataError: it raises an error.
        """
        return self._drawn(epoch)[1]

    def forget(self) -> None:
        """Ask the sampler again for the order of the next epoch that is wanted."""
        if self._sampler is not None:
            self._last = None

    def checksum(self, epoch: int) -> int:
        """Return a checksum of `of`: of some places, or of all that a sampler gave."""
        return self._drawn(epoch)[2]

    def _drawn(self, epoch: int) -> tuple[int, NDArray[np.int64], int]:
        if self._last is None or self._last[0] != epoch:
            if self._sampler is None:
                order = permutation(self.size, self.seed, epoch, shuffle=self.shuffle)
                self._last = epoch, order, order_checksum(order)
            else:
                order = self._ask(self._sampler, epoch)
                self._last = epoch, order, order_checksum(order, every=True)
        return self._last

    def _ask(self, sampler: Any, epoch: int) -> NDArray[np.int64]:
        name = type(sampler).__name__
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        with reading_rng(), self._own_seeded(epoch):
            seed_order(self.seed, epoch)
            try:
                given = list(islice(sampler, _MOST + 1))
            except Exception as error:
                raise DataError(
                    f"the sampler {name} gave no order of epoch {epoch}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not 0 < len(given) <= _MOST:
            count = "no" if not given else f"more than {_MOST}"
            raise ConfigError(f"the sampler {name} gave {count} indices in an epoch")
        try:
            order = np.fromiter(map(operator.index, given), np.int64, len(given))
        except TypeError:
            raise ConfigError(
                f"the sampler {name} must give one index after the other, got "
                f"{type(given[0]).__name__}; a batch sampler does not fit here, since "
                f"steps are cut by batch_size"
            ) from None
        if order.min() < 0 or order.max() >= self.size:
            raise ConfigError(
                f"the sampler {name} gave indices from {order.min()} to {order.max()}, "
                f"and the dataset has samples 0 to {self.size - 1}"
            )
        return order + self.size * _times_before(order)

    @contextmanager
    def _own_seeded(self, epoch: int) -> Iterator[None]:
        """Inside, the sampler's own generators are seeded, from their seeds, too."""
        states = [g.get_state() for g, _ in self._generators]
        try:
            for generator, own in self._generators:
                generator.manual_seed(spread_bits(self.seed, epoch, own) >> 1)
            yield
        finally:
            for (generator, _), state in zip(self._generators, states, strict=True):
                generator.set_state(state)


def _generators_of(sampler: Any) -> list[torch.Generator]:
    """Return the generators of a sampler, and of one that it is built on."""
    found: list[torch.Generator] = []
    for _ in range(8):
        generator = getattr(sampler, "generator", None)
        if isinstance(generator, torch.Generator) and generator not in found:
            found.append(generator)
        if (sampler := getattr(sampler, "sampler", None)) is None:
            break
    return found


def _times_before(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each place's value has come before."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    begins = np.repeat(first, np.diff(np.r_[first, len(ordered)]))
    times = np.empty_like(order)
    times[by_value] = np.arange(len(order)) - begins
    return times
