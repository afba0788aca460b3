"""Which samples belong to which micro-batch of which step.

Everything follows from (seed, epoch, step, part). Any worker can therefore compute any
part, and the parts are the same whatever number of workers they are divided among.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.data.loader import Ahead, Loader, LoaderSettings
from codedgrad.data.order import (
    described,
    label_numbers,
    order_checksum,
    part_sizes,
    permutation,
)
from codedgrad.data.reading import Reader
from codedgrad.data.samples import dataset_size
from codedgrad.data.shards import StepShards
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from codedgrad.data.loader import LoaderWords

PARTITIONS = ("shuffle", "fixed")


class ShardSampler:
    """Divides each epoch into steps and each step into parts.

    With partition="fixed" the data are cut once, from the seed alone, into k parts, one
    per shard, whose sizes differ by at most one. In every step shard j takes
    batch_size / k samples from its part, in an order from (seed, epoch, j). An epoch
    has every sample once. Its last step has what is left, which may be one sample less
    of some shards than of others, or none. `drop_last` leaves that step out; it loses
    less than batch_size + k samples, which are others in every epoch.

    With `num_workers` the batches of this worker's own passes are read ahead by loader
    processes, on torch's DataLoader, and with its words: `prefetch_factor` (batches
    that each process reads ahead, 2 if it is not given), `pin_memory`,
    `persistent_workers` (True; False starts the processes anew in every epoch),
    `worker_init_fn`, `multiprocessing_context`. What helpers need is read when they
    need it. A sample depends on (seed, epoch, index) alone, random augmentation
    included, wherever it is read.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        partition: str = "shuffle",
        by: Any = None,
        **loading: Unpack[LoaderWords],
    ) -> None:
        """Sample `dataset` in steps of `batch_size`.

        Args:
            dataset: a map-style dataset, or a TensorDataset or a tuple of tensors,
                which are indexed fast.
            batch_size: samples of one step, over all workers together.
            seed: seed of the permutations.
            shuffle: True for a new permutation in every epoch, from (seed, epoch).
            drop_last: True to leave out the last step of an epoch if it is smaller.
            collate_fn: makes a batch from a list of samples; None is torch's default.
            partition: "shuffle" gives any shard any sample; "fixed" gives shard j only
                samples of its own part of the data (see the class).
            by: with "fixed", a label or source of every sample, in whose order the
                parts are cut. Samples stay shuffled within a label, and every shard
                sees few labels.
            **loading: how batches are read ahead, see `LoaderSettings`.

        Raises:
            ConfigError: the dataset has no length or fewer samples than one step takes,
                there is no such partition, or `by` has another length or is given
                without "fixed", or words for loader processes do not fit.
        """
        self._size = dataset_size(dataset, batch_size)
        if partition not in PARTITIONS:
            raise ConfigError(
                f"no partition {partition!r}; there are {', '.join(PARTITIONS)}"
            )
        self.partition = partition
        self._by = label_numbers(by, self._size, partition)
        self._dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._reader = Reader(dataset, collate_fn, seed)
        settings = LoaderSettings(**loading)
        settings.check()
        self._loader = Loader(self._reader, settings) if settings.num_workers else None
        self.epoch = 0
        self._orders: dict[int, int] = {}  # the checksum of an epoch's order

    @property
    def dataset(self) -> Any:
        """The dataset that is sampled."""
        return self._dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of steps per epoch."""
        full, rest = divmod(self._size, self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers.

        Args:
            epoch: an epoch whose steps have begun.
        """
        by = "none" if self._by is None else f"{zlib.crc32(self._by.tobytes()):08x}"
        own = [("partition", self.partition), ("by", by)]
        return [*own, *described(self, self._orders.get(epoch, 0), epoch)]

    def order(self) -> NDArray[np.int64]:
        """Return the epoch's permutation of the samples."""
        return permutation(self._size, self.seed, self.epoch, shuffle=self._shuffle)

    def steps(
        self,
        parts: int,
        shards: int | None = None,
        *,
        whole: bool = False,
        own: Sequence[tuple[int, int]] = (),
    ) -> Iterator[StepShards]:
        """Yield the steps of one epoch, each cut into `parts` micro-batches.

        Args:
            parts: micro-batches of a step; each shard has parts / shards neighbours.
            shards: k, the code's number of shards, for a fixed partition; None makes
                each part a shard.
            whole: True to make the shards as even as possible, which are then one pass
                each; False to make the micro-batches so, which does not depend on the
                number of shards.
            own: the passes whose batches loader processes read ahead, in the order of
                the passes: the first part of each, and one past the last.

        Raises:
            ConfigError: a step has fewer samples than parts; or the partition is fixed
                and the shards do not divide the parts or the batch size.
        """
        if self.batch_size < parts:
            raise ConfigError(
                f"a step of {self.batch_size} samples cannot be cut into {parts} "
                f"micro-batches; raise batch_size or lower the code's `micro`"
            )
        if self.partition == "fixed":
            cut = self._fixed_cut(parts, shards or parts)
        else:
            cut = self._shuffled_cut(parts, shards if whole else None)
        if self._loader is None or not own:
            yield from map(cut, range(len(self)))
            return
        ahead = Ahead(self._loader, cut, len(self), own)
        try:
            for index in range(len(self)):
                ahead.begin(index)
                step = cut(index)
                step.ahead = ahead
                yield step
        finally:
            ahead.end()

    def _shuffled_cut(
        self, parts: int, shards: int | None
    ) -> Callable[[int], StepShards]:
        """Return a function that gives a step of the epoch by its number."""
        epoch, order = self.epoch, self.order()
        self._orders = {epoch: order_checksum(order)}

        def cut(index: int) -> StepShards:
            begin = index * self.batch_size
            samples = order[begin : begin + self.batch_size]
            sizes = part_sizes(len(samples), parts, self.batch_size)
            if shards is not None:
                of_shards = part_sizes(len(samples), shards, self.batch_size)
                usual = self.batch_size // shards
                sizes = [
                    n for s in of_shards for n in part_sizes(s, parts // shards, usual)
                ]
            return StepShards(self, epoch, index, samples, sizes)

        return cut

    def shard_samples(self, shards: int) -> list[NDArray[np.int64]]:
        """Return the fixed part of each of `shards` shards, the same in every epoch."""
        order = permutation(self._size, self.seed, 0, shuffle=self._shuffle)
        if self._by is not None:
            order = order[np.argsort(self._by[order], kind="stable")]
        return np.array_split(order, shards)

    def _fixed_cut(self, parts: int, shards: int) -> Callable[[int], StepShards]:
        if parts % shards or self.batch_size % shards:
            raise ConfigError(
                f"a fixed partition needs a batch_size ({self.batch_size}) and "
                f"micro-batches ({parts}) that are multiples of the {shards} shards; "
                f"change batch_size"
            )
        epoch, own = self.epoch, self.shard_samples(shards)
        if self._shuffle:
            own = [
                part[permutation(len(part), self.seed, epoch, j, shuffle=True)]
                for j, part in enumerate(own)
            ]
        each = self.batch_size // shards
        self._orders = {epoch: order_checksum(*own)}

        def cut(index: int) -> StepShards:
            taken = [part[index * each : (index + 1) * each] for part in own]
            sizes = [
                n
                for part in taken
                for n in part_sizes(len(part), parts // shards, each)
            ]
            return StepShards(self, epoch, index, np.concatenate(taken), sizes)

        return cut

    @property
    def readable_here(self) -> bool:
        """Whether no process that is started later takes over what this one opens."""
        return self._loader is None or self._loader.started_once

    @property
    def reader(self) -> Reader:
        """What reads the dataset."""
        return self._reader
