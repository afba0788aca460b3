"""Which samples belong to which micro-batch of which step.

Everything follows from (seed, epoch, step, part): any worker can compute any part,
and the parts are the same whatever the number of workers they are divided among.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import TensorDataset, default_collate

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from codedgrad.codes import Code

PARTITIONS = ("shuffle", "fixed")


class ShardSampler:
    """Divides each epoch into steps and each step into parts.

    With partition="fixed" the data are cut once, from the seed alone, into k parts, one
    per shard, whose sizes differ by one at most; shard j takes from part j in every
    step and epoch, each time batch_size / k samples, in an order from (seed, epoch, j).
    An epoch has every sample once: its last step has what is left, of some shards one
    sample less than of others, maybe none; `drop_last` leaves that step out (less than
    batch_size + k samples, others in every epoch).
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
            dataset: map-style; or a TensorDataset or tuple of tensors (indexed fast).
            batch_size: samples of one step, over all workers together.
            seed: of the permutations.
            shuffle: a new permutation every epoch, from (seed, epoch).
            drop_last: leave out the last step of an epoch if it is smaller.
            collate_fn: list of samples -> batch; torch's default if None.
            partition: "shuffle", any shard gets any sample; or "fixed", shard j always
                those of its own part of the data (see the class).
            by: for "fixed": a label or source of every sample, in whose order the parts
                are cut (stable, so shuffled within a label): every shard sees few.

        Raises:
            ConfigError: no length, fewer samples than one step takes, no such
                partition, or `by` of another length or without "fixed".
        """
        self._size = dataset_size(dataset, batch_size)
        if partition not in PARTITIONS:
            raise ConfigError(
                f"no partition {partition!r}; there are {', '.join(PARTITIONS)}"
            )
        self.partition = partition
        self._by = _labels(by, self._size, partition)
        self._dataset = dataset
        self.batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._collate = collate_fn or default_collate
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps per epoch."""
        full, rest = divmod(self._size, self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def order(self) -> NDArray[np.int64]:
        """The epoch's permutation of the samples."""
        return permutation(self._size, self._seed, self.epoch, shuffle=self._shuffle)

    def steps(self, parts: int, shards: int | None = None) -> Iterator[StepShards]:
        """One epoch, each step cut into `parts` micro-batches.

        Args:
            parts: micro-batches of a step; shard j has parts / shards of them in a row.
            shards: k, of the code, for a fixed partition; None: each part is a shard.

        Raises:
            ConfigError: a step has fewer samples than parts; with a fixed partition
                also: shards do not divide the parts or the batch size.
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
        for index in range(len(self)):
            begin = index * self.batch_size
            samples = order[begin : begin + self.batch_size]
            yield StepShards(self, epoch, index, samples, even(len(samples), parts))

    def shard_samples(self, shards: int) -> list[NDArray[np.int64]]:
        """The fixed part of each of `shards` shards, the same in every epoch."""
        order = permutation(self._size, self._seed, 0, shuffle=self._shuffle)
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
                part[permutation(len(part), self._seed, epoch, j, shuffle=True)]
                for j, part in enumerate(own)
            ]
        each = self.batch_size // shards
        for index in range(len(self)):
            taken = [part[index * each : (index + 1) * each] for part in own]
            sizes = [n for part in taken for n in even(len(part), parts // shards)]
            yield StepShards(self, epoch, index, np.concatenate(taken), sizes)

    def fetch(self, samples: NDArray[np.int64]) -> tuple[Any, ...]:
        """The collated batch of these samples, as positional arguments."""
        data = self._dataset
        tensors = data.tensors if isinstance(data, TensorDataset) else data
        if isinstance(tensors, tuple) and self._collate is default_collate:
            which = torch.from_numpy(samples)
            return tuple(t[which] for t in tensors)
        if hasattr(data, "__getitems__"):
            items = data.__getitems__(samples.tolist())
        else:
            items = [data[i] for i in samples.tolist()]
        batch = self._collate(items)
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


class StepShards:
    """One step's data, part by part.

    Attributes:
        epoch: of the sampler.
        index: of the step within the epoch.
        parts: number of micro-batches.
        sizes: samples of each part; of a shard's parts as even as possible, larger
            ones first.
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
        self._sampler = sampler
        self._samples = samples
        self.epoch = epoch
        self.index = index
        self.parts = len(sizes)
        self.total = len(samples)
        self.sizes = tuple(sizes)
        self._starts = [0, *np.cumsum(self.sizes).tolist()]

    def indices(self, part: int) -> NDArray[np.int64]:
        """The samples of `part`, as indices into the dataset."""
        return self._samples[self._starts[part] : self._starts[part + 1]]

    def weight(self, part: int) -> float:
        """Share of the step's samples: the weight of the part's mean gradient."""
        return self.sizes[part] / self.total

    def fetch(self, part: int) -> tuple[Any, ...]:
        """The part's batch: what the loss function is called with."""
        return self._sampler.fetch(self.indices(part))


class ShardBatchSampler:
    """For the drop-in face: a torch `batch_sampler` of this worker's own shards.

    Each step is one list of indices: the shards that the code requires of the worker,
    merged. Shards have equal sizes; the last step is filled up from the beginning of
    the epoch, as torch's DistributedSampler does, or left out.

    Attributes:
        skip: asked with the number of steps yielded so far; where it says True, one
            index is yielded instead of all (the step is decoded without this worker).
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
        """`batch_size` is that of a step over all workers together.

        Raises:
            ConfigError: no length, too few samples, or a batch size that is no
                multiple of the number of shards.
        """
        self._size = dataset_size(dataset, batch_size)
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
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self.epoch = 0
        self._yielded = 0
        self.skip: Callable[[int], bool] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps per epoch."""
        full, rest = divmod(self._size, self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        """One epoch."""
        order = permutation(self._size, self._seed, self.epoch, shuffle=self._shuffle)
        order = np.concatenate([order, order[: self.batch_size]])
        for index in range(len(self)):
            begin = index * self.batch_size
            mine = order[begin + self._begin : begin + self._end].tolist()
            needless = self.skip is not None and self.skip(self._yielded)
            self._yielded += 1
            yield mine[:1] if needless else mine


def permutation(
    size: int, seed: int, epoch: int, *shard: int, shuffle: bool
) -> NDArray[np.int64]:
    """The order of an epoch's samples (of a shard), from (seed, epoch, shard) alone."""
    if not shuffle:
        return np.arange(size)
    generator = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, epoch, *shard]))
    )
    return generator.permutation(size)


def even(total: int, parts: int) -> list[int]:
    """Sizes of `parts` parts of `total`, as even as possible, larger ones first."""
    each, extra = divmod(total, parts)
    return [each + (part < extra) for part in range(parts)]


def _labels(by: Any, size: int, partition: str) -> NDArray[np.int64] | None:
    """`by` as numbers in its order."""
    if by is None:
        return None
    if partition != "fixed":
        raise ConfigError('`by` says how fixed parts are cut; add partition="fixed"')
    labels = np.asarray(by)
    if labels.shape != (size,):
        raise ConfigError(
            f"`by` is {labels.shape}, wanted one label for each of the {size} samples"
        )
    return np.unique(labels, return_inverse=True)[1]


def dataset_size(dataset: Any, batch_size: int) -> int:
    """Number of samples.

    Raises:
        ConfigError: no length, or fewer samples than one step takes.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(dataset, tuple) and all(isinstance(t, torch.Tensor) for t in dataset):
        lengths = {len(t) for t in dataset}
        if len(lengths) != 1:
            raise ConfigError(f"tensors of different lengths: {sorted(lengths)}")
        size = lengths.pop()
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        size = len(dataset)
    else:
        raise ConfigError(
            f"{type(dataset).__name__} has no length or no indexing; any worker must "
            f"be able to read any sample: use a map-style dataset"
        )
    if size < batch_size:
        raise ConfigError(
            f"the dataset has {size} samples, fewer than the {batch_size} of one step; "
            f"lower batch_size"
        )
    return size
