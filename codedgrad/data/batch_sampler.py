"""The sampler of the drop-in: a worker's own shards, for a DataLoader of torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data.dataloader import _BaseDataLoaderIter

from codedgrad.data.drawn import Order
from codedgrad.data.order import described
from codedgrad.data.position import Position
from codedgrad.data.samples import dataset_size
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from codedgrad.codes import Code

# The samples of a batch that is not needed: means and deviations over them exist.
SMALL = 2
_CALLERS = 8  # a library may put its own batch sampler around this one


class ShardBatchSampler:
    """A torch `batch_sampler` of this worker's own shards, for DistributedOptimizer.

    Each step is one list of indices, in which the shards that the code requires of the
    worker are merged. Shards have equal sizes. The last step is filled up from the
    beginning of the epoch, as torch's DistributedSampler does it, or left out.

    Attributes:
        samples: samples of one step on this worker.
        skip: called before each batch with its number, counted from the first one that
            this run has of the epoch. Where it returns True the batch is not needed,
            and two indices are yielded instead of all.
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
        sampler: Iterable[int] | None = None,
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
            sampler: gives the indices of an epoch's samples, for all workers together,
                in place of a permutation; see `ShardSampler`.

        Raises:
            ConfigError: the dataset has no length or too few samples, the batch size
                is not a multiple of the number of shards, or `sampler` is not for all
                workers together.
        """
        size = dataset_size(dataset, batch_size, repeats=sampler is not None)
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
        self._drop_last = drop_last
        self._order = Order(size, seed, shuffle=shuffle, sampler=sampler)
        self.epoch = 0
        self._start = Position()  # of the batches of this run in the epoch
        self._drawn = 0  # so many of these batches
        self._begun = self._resumed = self._read_here = False
        self.samples = self._end - self._begin
        self.skip: Callable[[int], bool] | None = None

    @property
    def dataset(self) -> Any:
        """The dataset that is sampled."""
        return self._dataset

    @property
    def begun_epoch(self) -> int:
        """The epoch that was begun last, or -1."""
        return self._start.epoch if self._begun else -1

    @property
    def readable_here(self) -> bool:
        """Whether no process of the DataLoader takes over what this one opens.

        Reading a sample may open a file. So it is where the loader reads in this
        process or keeps its processes, and not before its first batch.
        """
        return self._read_here

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        if epoch != self.epoch:
            self._resumed = False
        self.epoch = epoch

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers.

        Args:
            epoch: `begun_epoch`, which is -1 in steps before the first batch.
        """
        checksum = self._order.checksum(epoch) if epoch >= 0 else 0
        pairs = described(self, checksum, epoch)
        return [*pairs, ("samples of the epoch before", str(self._start.samples))]

    def state_dict(self, batches: int) -> dict[str, Any]:
        """Return the place in the epoch, for a checkpoint.

        Args:
            batches: how many batches of the DataLoader this run has used in the epoch,
                which with loader processes are fewer than it has drawn: `i + 1` behind
                the step in `for i, batch in enumerate(loader)`, also in an epoch that
                was resumed.

        Raises:
            ConfigError: the DataLoader has not given so many.
        """
        at, here = self._start, self.epoch
        if at.epoch != here or not self._begun or self._resumed:
            at, drawn = (at if self._resumed else Position(here)), 0
        else:
            drawn = self._drawn
        if not 0 <= batches <= drawn:
            raise ConfigError(
                f"state_dict(batches={batches}): the DataLoader has drawn {drawn} "
                f"batches of epoch {here} in this run; give the number that were used, "
                f"i + 1 in `for i, batch in enumerate(loader)`"
            )
        used = min(at.samples + batches * self.batch_size, len(self._order.of(here)))
        return Position(here, at.steps + batches, used).state(self._same(here))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next batches at the place of a checkpoint, and set the epoch.

        The samples that were used do not come again in this epoch, and all others do,
        with any number of workers. Later epochs are whole. Call it on every worker,
        before the DataLoader's iterator is made.

        Raises:
            ConfigError: the checkpoint is of other data, or another seed.
        """
        at = Position.of(state, self._same(int(state.get("epoch", 0))))
        self._start, self.epoch, self._resumed = at, at.epoch, True

    def _same(self, epoch: int) -> dict[str, Any]:
        order = self._order
        return {
            "samples": order.size,
            "seed": self.seed,
            "shuffle": order.shuffle,
            f"order of samples{order.whose}": f"{order.checksum(epoch):08x}",
        }

    def __len__(self) -> int:
        """Return the number of steps of the epoch that this run has."""
        order = self._order
        size = len(order.of(self.epoch)) if order.whose else order.size
        used = self._start.samples if self._resumed else 0
        full, rest = divmod(size - used, self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each step of one epoch."""
        steps = len(self)
        self._read_here = _reads_here(sys._getframe(1))
        if not self._resumed:
            self._start = Position(self.epoch)
            self._order.forget()
        self._begun, self._resumed, self._drawn = True, False, 0
        numbers = self._order.of(self.epoch)
        order = np.resize(numbers, len(numbers) + self.batch_size) % self._order.size
        for index in range(steps):
            begin = self._start.samples + index * self.batch_size
            own = order[begin + self._begin : begin + self._end].tolist()
            needless = self.skip is not None and self.skip(index)
            self._drawn = index + 1
            yield own[:SMALL] if needless else own


def _reads_here(caller: FrameType | None) -> bool:
    """Return whether the DataLoader that asks for batches starts no process later.

    What it is, only its iterator knows, which is among the callers.
    """
    for _ in range(_CALLERS):
        if caller is None:
            break
        asks = caller.f_locals.get("self")
        if isinstance(asks, _BaseDataLoaderIter):
            return asks._num_workers == 0 or asks._persistent_workers
        caller = caller.f_back
    return False
