"""The sampler of the drop-in: a worker's own shards, for a DataLoader of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.data.order import described, order_checksum, permutation
from codedgrad.data.samples import dataset_size
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from codedgrad.codes import Code

# The samples of a batch that is not needed: means and deviations over them exist.
SMALL = 2


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
        return described(self, 0 if self._begun is None else self._begun[1], epoch)

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
