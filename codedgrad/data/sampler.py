"""Which samples belong to which micro-batch of which step.

Everything follows from (seed, epoch, step, part). Any worker can therefore compute any
part, and the parts are the same whatever number of workers they are divided among.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from codedgrad.data.cost import ReadingCost
from codedgrad.data.drawn import Order
from codedgrad.data.loader import LoaderSettings
from codedgrad.data.order import (
    Cuts,
    check_enough,
    described,
    label_numbers,
    order_checksum,
    permutation,
    sizes_of,
)
from codedgrad.data.position import Position
from codedgrad.data.reading import Reader
from codedgrad.data.samples import dataset_size
from codedgrad.data.shards import StepShards
from codedgrad.data.source import Epoch, Source
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from codedgrad.data.loader import LoaderWords

PARTITIONS = ("shuffle", "fixed")


class ShardSampler(Source):
    """Divides each epoch into steps and each step into parts.

    With partition="fixed" the data are cut once, from the seed alone, into k parts, one
    per shard, whose sizes differ by at most one. In every step shard j takes
    batch_size / k samples from its part, in an order from (seed, epoch, j). An epoch
    has every sample once. Its last step has what is left, which is less. Where that is
    a single sample of some shard, the step is divided among fewer shards. `drop_last`
    leaves that step out; it loses less than batch_size samples, which are others in
    every epoch.

    With `sampler` an epoch has the samples that this one gives, in its order: any
    Sampler of torch's kind (weighted, grouped by length). While it gives them, the
    generators of torch, numpy and `random`, and its own `generator`, are seeded from
    (seed, epoch), and its `set_epoch` is called if it has one. So the order follows
    from (seed, epoch), and all workers have the same. A sample that comes several times
    in an epoch has other random augmentation each time.

    With `num_workers` the batches of this worker's own passes are read ahead by loader
    processes, on torch's DataLoader, and with its words: `prefetch_factor` (batches
    that each process reads ahead, 2 if it is not given), `pin_memory`,
    `persistent_workers` (True; False starts the processes anew in every epoch),
    `worker_init_fn`, `multiprocessing_context`. What helpers need is read when they
    need it. A sample depends on (seed, epoch, index) alone, random augmentation
    included, wherever it is read.

    `state_dict()` tells the place in the epoch, from which any number of workers may go
    on after `load_state_dict`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        sampler: Iterable[int] | None = None,
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
            drop_last: True to leave out the last step of an epoch if it is smaller. If
                it would be a single sample, the step before takes it.
            sampler: gives the indices of an epoch's samples, in place of a permutation.
            collate_fn: makes a batch from a list of samples; None is torch's default.
            partition: "shuffle" gives any shard any sample; "fixed" gives shard j only
                samples of its own part of the data (see the class).
            by: with "fixed", a label or source of every sample, in whose order the
                parts are cut. Samples stay shuffled within a label, and every shard
                sees few labels.
            **loading: how batches are read ahead, see `LoaderSettings`.

        Raises:
            ConfigError: the dataset has no length or fewer samples than one step takes,
                there is no such partition, `by` has another length or is given without
                "fixed", `sampler` is not for all workers together, or words for loader
                processes do not fit.
        """
        size = dataset_size(dataset, batch_size, repeats=sampler is not None)
        if partition not in PARTITIONS:
            raise ConfigError(
                f"no partition {partition!r}; there are {', '.join(PARTITIONS)}"
            )
        if sampler is not None and partition == "fixed":
            raise ConfigError(
                'sampler= gives any shard any sample; leave partition="fixed" out'
            )
        reader = Reader(dataset, collate_fn, seed, size)
        super().__init__(reader, LoaderSettings.of(ShardSampler, loading))
        self.partition = partition
        self._by = label_numbers(by, size, partition)
        self._dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._drop_last = drop_last
        self._order = Order(size, seed, shuffle=shuffle, sampler=sampler)
        if self._loader is None and reader.rows is None:
            self.cost = ReadingCost()

    @property
    def dataset(self) -> Any:
        """The dataset that is sampled."""
        return self._dataset

    def __iter__(self) -> NoReturn:
        """Refuse `for ... in sampler`: a step is cut for the code of a training."""
        raise TypeError(
            "a ShardSampler is read by `for shards in coded.steps(sampler)`, where "
            "coded = codedgrad.CodedGradient(model)"
        )

    def __len__(self) -> int:
        """Return the number of steps of the epoch, from its begin."""
        count = len(self._order.of(self.epoch)) if self._order.whose else None
        return Cuts(count or self._order.size, self.batch_size, self._drop_last).steps

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers.

        Args:
            epoch: an epoch whose steps have begun.
        """
        by = "none" if self._by is None else f"{zlib.crc32(self._by.tobytes()):08x}"
        own = [("partition", self.partition), ("by", by)]
        return [*own, *described(self, self._checksum(epoch), epoch)]

    def _checksum(self, epoch: int) -> int:
        if self.partition == "shuffle":
            return self._order.checksum(epoch)
        return order_checksum(self._base(), np.array([epoch]))

    def _same(self, epoch: int) -> dict[str, Any]:
        return {
            "samples": self._order.size,
            "seed": self.seed,
            "shuffle": self._order.shuffle,
            "drop_last": self._drop_last,
            "partition": self.partition,
            f"order of samples{self._order.whose}": f"{self._checksum(epoch):08x}",
        }

    def order(self) -> NDArray[np.int64]:
        """Return the indices of the epoch's samples, in their order."""
        return self.indices(self._order.of(self.epoch))

    def indices(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices into the dataset of samples by their numbers."""
        return numbers % self._order.size if self._order.whose else numbers

    def _begin(
        self, start: Position, parts: int, shards: int | None, whole: bool
    ) -> Epoch:
        size, step = self.batch_size, f"batch_size={self.batch_size}"
        check_enough(size, parts, shards, whole=whole, step=step)
        if self.partition == "fixed":
            return self._fixed(start, parts, shards or parts)
        self._order.forget()  # weights of a sampler may have changed
        samples = self._order.of(start.epoch)[start.samples :]
        cuts = Cuts(len(samples), self.batch_size, self._drop_last)
        of_shards = shards if whole else None

        def cut(index: int) -> StepShards:
            here = cuts.slice(index - start.steps)
            taken = samples[here]
            after = Position(start.epoch, index + 1, start.samples + here.stop)
            sizes = sizes_of(len(taken), parts, of_shards, self.batch_size)
            return StepShards(self, index, taken, sizes, after)

        return Epoch(cut, range(start.steps, start.steps + cuts.steps))

    # ---- a fixed partition ----

    def _base(self) -> NDArray[np.int64]:
        """Return all samples in the order in which they are cut into parts."""
        size, shuffle = self._order.size, self._order.shuffle
        order = permutation(size, self.seed, 0, shuffle=shuffle)
        if self._by is not None:
            order = order[np.argsort(self._by[order], kind="stable")]
        return order

    def shard_samples(self, shards: int) -> list[NDArray[np.int64]]:
        """Return the fixed part of each of `shards` shards, the same in every epoch."""
        return np.array_split(self._base(), shards)

    def _parts_of(
        self, samples: NDArray[np.int64], epoch: int, shards: int, number: int
    ) -> list[NDArray[np.int64]]:
        """Return each shard's part of an epoch, or of what `number` runs have left."""
        parts = np.array_split(samples, shards)
        if not self._order.shuffle:
            return parts
        more = (number,) if number else ()
        return [
            part[permutation(len(part), self.seed, epoch, j, *more, shuffle=True)]
            for j, part in enumerate(parts)
        ]

    def _left(self, start: Position, before: list[list[int]]) -> NDArray[np.int64]:
        """Return the samples that the runs `before` of the epoch have not used."""
        left = self._base()
        for number, (each, shards, steps) in enumerate(before):
            own = self._parts_of(left, start.epoch, shards, number)
            over = steps >= Cuts(len(left), each * shards, self._drop_last).steps
            some = None if over and not self._drop_last else steps * each
            used = np.concatenate([part[:some] for part in own])
            left = left[~np.isin(left, used)]
        return left

    def _fixed(self, start: Position, parts: int, shards: int) -> Epoch:
        if parts % shards or self.batch_size % shards:
            raise ConfigError(
                f"a fixed partition needs a batch_size ({self.batch_size}) and "
                f"micro-batches ({parts}) that are multiples of the {shards} shards; "
                f"change batch_size"
            )
        each, before, made = self.batch_size // shards, start.parts, 0
        if before and before[-1][:2] == [each, shards]:  # the same run goes on
            before, made = before[:-1], before[-1][2]
        left = self._left(start, before)
        own = self._parts_of(left, start.epoch, shards, len(before))
        cuts = Cuts(len(left), self.batch_size, self._drop_last)
        first = start.steps - made  # the number of the first step of these parts
        used = start.samples - (made * self.batch_size)

        def cut(index: int) -> StepShards:
            i = index - first
            here = cuts.slice(i)
            begin = i * each
            end = begin + each if here.stop == (i + 1) * self.batch_size else None
            taken = [part[begin:end] for part in own]
            sizes = [
                n for t in taken for n in sizes_of(len(t), parts // shards, None, each)
            ]
            if each > 1 and 1 in map(len, taken):
                sizes = sizes_of(sum(map(len, taken)), parts, shards, self.batch_size)
            after = Position(start.epoch, index + 1, used + here.stop)
            after.parts = [*before, [each, shards, i + 1]]
            return StepShards(self, index, np.concatenate(taken), sizes, after)

        return Epoch(cut, range(start.steps, first + cuts.steps))
