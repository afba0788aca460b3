"""Which samples belong to which micro-batch of which step.

Everything follows from (seed, epoch, step, part). Any worker can therefore compute any
part, and the parts are the same whatever number of workers they are divided among.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from codedgrad.data.order import (
    label_numbers,
    order_checksum,
    part_sizes,
    permutation,
)
from codedgrad.data.samples import dataset_size, read_sample, tensors_of
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from codedgrad.codes import Code

PARTITIONS = ("shuffle", "fixed")
# The samples of a batch that is not needed: means and deviations over them exist.
SMALL = 2


class ShardSampler:
    """Divides each epoch into steps and each step into parts.

    With partition="fixed" the data are cut once, from the seed alone, into k parts, one
    per shard, whose sizes differ by at most one. In every step shard j takes
    batch_size / k samples from its part, in an order from (seed, epoch, j). An epoch
    has every sample once. Its last step has what is left, which may be one sample less
    of some shards than of others, or none. `drop_last` leaves that step out; it loses
    less than batch_size + k samples, which are others in every epoch.
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

        Raises:
            ConfigError: the dataset has no length or fewer samples than one step takes,
                there is no such partition, or `by` has another length or is given
                without "fixed".
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
        self._collate = collate_fn or default_collate
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
        return [*own, *_described(self, self._orders.get(epoch, 0), epoch)]

    def order(self) -> NDArray[np.int64]:
        """Return the epoch's permutation of the samples."""
        return permutation(self._size, self.seed, self.epoch, shuffle=self._shuffle)

    def steps(
        self, parts: int, shards: int | None = None, *, whole: bool = False
    ) -> Iterator[StepShards]:
        """Yield the steps of one epoch, each cut into `parts` micro-batches.

        Args:
            parts: micro-batches of a step; each shard has parts / shards neighbours.
            shards: k, the code's number of shards, for a fixed partition; None makes
                each part a shard.
            whole: True to make the shards as even as possible, which are then one pass
                each; False to make the micro-batches so, which does not depend on the
                number of shards.

        Raises:
            ConfigError: a step has fewer samples than parts; or the partition is fixed
                and the shards do not divide the parts or the batch size.
        """
        if self.batch_size < parts:
            raise ConfigError(
                f"a step of {self.batch_size} samples cannot be cut into {parts} "
                f"micro-batches; raise batch_size or lower the code's `micro`"
            )
        epoch = self.epoch
        if self.partition == "fixed":
            yield from self._fixed_steps(epoch, parts, shards or parts)
            return
        order = self.order()
        self._orders = {epoch: order_checksum(order)}
        for index in range(len(self)):
            begin = index * self.batch_size
            samples = order[begin : begin + self.batch_size]
            sizes = part_sizes(len(samples), parts, self.batch_size)
            if whole and shards is not None:
                of_shards = part_sizes(len(samples), shards, self.batch_size)
                usual = self.batch_size // shards
                sizes = [
                    n for s in of_shards for n in part_sizes(s, parts // shards, usual)
                ]
            yield StepShards(self, epoch, index, samples, sizes)

    def shard_samples(self, shards: int) -> list[NDArray[np.int64]]:
        """Return the fixed part of each of `shards` shards, the same in every epoch."""
        order = permutation(self._size, self.seed, 0, shuffle=self._shuffle)
        if self._by is not None:
            order = order[np.argsort(self._by[order], kind="stable")]
        return np.array_split(order, shards)

    def _fixed_steps(self, epoch: int, parts: int, shards: int) -> Iterator[StepShards]:
        if parts % shards or self.batch_size % shards:
            raise ConfigError(
                f"a fixed partition needs a batch_size ({self.batch_size}) and "
                f"micro-batches ({parts}) that are multiples of the {shards} shards; "
                f"change batch_size"
            )
        own = self.shard_samples(shards)
        if self._shuffle:
            own = [
                part[permutation(len(part), self.seed, epoch, j, shuffle=True)]
                for j, part in enumerate(own)
            ]
        each = self.batch_size // shards
        self._orders = {epoch: order_checksum(*own)}
        for index in range(len(self)):
            taken = [part[index * each : (index + 1) * each] for part in own]
            sizes = [
                n
                for part in taken
                for n in part_sizes(len(part), parts // shards, each)
            ]
            yield StepShards(self, epoch, index, np.concatenate(taken), sizes)

    def fetch(self, samples: NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the collated batch of these samples, as positional arguments.

        The loss function is called with what a loop over a DataLoader would unpack: a
        tuple's members are arguments of their own, and so are the members of the list
        into which torch's default collate function turns samples that are tuples or
        lists. Whatever else a collate function returns, a list included, is one
        argument.
        """
        data, collate = self._dataset, self._collate
        tensors = tensors_of(data)
        if tensors is not None and collate is default_collate:
            index = torch.from_numpy(samples)
            return tuple(t[index] for t in tensors)
        if hasattr(data, "__getitems__"):
            items = data.__getitems__(samples.tolist())
        else:
            items = [read_sample(data, i) for i in samples.tolist()]
        batch = collate(items)
        if isinstance(batch, list) and collate is default_collate:
            return tuple(batch)
        return batch if isinstance(batch, tuple) else (batch,)


class StepShards:
    """One step's data, part by part.

    Attributes:
        sampler: the sampler whose step it is.
        epoch: the sampler's epoch.
        index: number of the step within the epoch.
        parts: number of micro-batches.
        sizes: samples of each part. A shard's parts are as even as possible, and
            larger ones come first; in a short last step some may be empty (see
            `part_sizes`).
        total: samples of the step.
    """

    def __init__(
        self,
        sampler: ShardSampler,
        epoch: int,
        index: int,
        samples: NDArray[np.int64],
        sizes: Sequence[int],
    ) -> None:
        """Cut `samples` into parts of these sizes."""
        self.sampler = sampler
        self._samples = samples
        self.epoch = epoch
        self.index = index
        self.parts = len(sizes)
        self.total = len(samples)
        self.sizes = tuple(sizes)
        self._starts = [0, *np.cumsum(self.sizes).tolist()]

    def indices(self, part: int, stop: int | None = None) -> NDArray[np.int64]:
        """Return the samples of `part`, as indices into the dataset.

        With `stop` they are those of the parts from `part` to `stop` - 1, in order.
        """
        end = part + 1 if stop is None else stop
        return self._samples[self._starts[part] : self._starts[end]]

    def samples(self, part: int, stop: int | None = None) -> int:
        """Return the number of samples that `indices` gives."""
        return sum(self.sizes[part : part + 1 if stop is None else stop])

    def weight(self, part: int, stop: int | None = None) -> float:
        """Return the share of the step's samples that `indices` gives.

        It is the weight of their mean gradient in the step's.
        """
        end = part + 1 if stop is None else stop
        return sum(self.sizes[part:end]) / self.total

    def fetch(self, part: int, stop: int | None = None) -> tuple[Any, ...]:
        """Return the batch of `indices`, with which the loss function is called."""
        return self.sampler.fetch(self.indices(part, stop))


class ShardBatchSampler:
    """A torch `batch_sampler` of this worker's own shards, for DistributedOptimizer.

    Each step is one list of indices, in which the shards that the code requires of the
    worker are merged. Shards have equal sizes. The last step is filled up from the
    beginning of the epoch, as torch's DistributedSampler does it, or left out.

    Attributes:
        samples: samples of one step on this worker.
        skip: called before each batch with its number in the epoch. Where it returns
            True the batch is not needed, and two indices are yielded instead of all.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        code: Code,
        worker: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        """Sample `dataset` in steps of `batch_size`, over all workers together.

        Args:
            dataset: a map-style dataset or a tuple of tensors.
            batch_size: samples of one step, over all workers together.
            code: the code whose shards are sampled.
            worker: number of this worker.
            seed: seed of the permutations.
            shuffle: True for a new permutation in every epoch, from (seed, epoch).
            drop_last: True to leave out the last step of an epoch if it is smaller.

        Raises:
            ConfigError: the dataset has no length or too few samples, or the batch size
                is not a multiple of the number of shards.
        """
        self._size = dataset_size(dataset, batch_size)
        self._dataset = dataset
        if batch_size % code.shards:
            raise ConfigError(
                f"batch_size {batch_size} must be a multiple of the code's "
                f"{code.shards} shards"
            )
        each = batch_size // code.shards
        node = code.work[worker][0]
        self._begin = int(code.tree.start[node]) // code.micro * each
        self._end = int(code.tree.stop[node]) // code.micro * each
        self.batch_size = batch_size
        self.seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self.epoch = 0
        self._begun: tuple[int, int] | None = None  # the epoch, its order's checksum
        self.samples = self._end - self._begin
        self.skip: Callable[[int], bool] | None = None

    @property
    def dataset(self) -> Any:
        """The dataset that is sampled."""
        return self._dataset

    @property
    def begun_epoch(self) -> int:
        """The epoch that was begun last, or -1."""
        return -1 if self._begun is None else self._begun[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers.

        Args:
            epoch: `begun_epoch`.
        """
        return _described(self, 0 if self._begun is None else self._begun[1], epoch)

    def __len__(self) -> int:
        """Return the number of steps per epoch."""
        full, rest = divmod(self._size, self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each step of one epoch."""
        order = permutation(self._size, self.seed, self.epoch, shuffle=self._shuffle)
        self._begun = (self.epoch, order_checksum(order))
        order = np.concatenate([order, order[: self.batch_size]])
        for index in range(len(self)):
            begin = index * self.batch_size
            own = order[begin + self._begin : begin + self._end].tolist()
            needless = self.skip is not None and self.skip(index)
            yield own[:SMALL] if needless else own


def _described(
    sampler: ShardSampler | ShardBatchSampler, order: int, epoch: int
) -> list[tuple[str, str]]:
    """Return what both samplers tell of themselves; `order` is a checksum."""
    values = {
        "samples": sampler._size,
        "batch_size": sampler.batch_size,
        "sampler seed": sampler.seed,
        "shuffle": sampler._shuffle,
        "drop_last": sampler._drop_last,
        "epoch": epoch,
        "order of samples": f"{order:08x}",
    }
    return [(name, str(value)) for name, value in values.items()]
