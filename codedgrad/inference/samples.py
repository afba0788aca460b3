"""The data of an evaluation: each sample once, in batches that nothing else decides."""

from __future__ import annotations

import weakref
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from codedgrad.data.loader import LoaderSettings
from codedgrad.data.position import Position
from codedgrad.data.reading import Reader
from codedgrad.data.sampler import ShardSampler
from codedgrad.data.samples import dataset_size, tensors_of
from codedgrad.data.shards import StepShards
from codedgrad.data.source import Epoch, Source
from codedgrad.errors import ConfigError, unknown_keywords
from codedgrad.step.content import content_digest, in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from codedgrad.data.loader import BatchReader

_BATCH = 64  # samples, where nobody says how many
_whole: weakref.WeakKeyDictionary[Any, tuple[Any, Whole]] = weakref.WeakKeyDictionary()


class Whole(Source):
    """A data set as one step, whose micro-batches are the batches of an evaluation."""

    def __init__(
        self,
        dataset: Any,
        reader: BatchReader,
        batch_size: int,
        settings: LoaderSettings,
    ) -> None:
        """Take a data set, what reads it, and the samples of a batch.

        Raises:
            ConfigError: the data set has no length, or the batch size is none.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, got {batch_size!r}")
        self.samples = dataset_size(dataset, 1)
        super().__init__(reader, settings)
        self._dataset = dataset
        self._content: str | None = None  # a digest
        self.batch_size, self.seed = batch_size, 0
        self.batches = -(-self.samples // batch_size)

    @property
    def dataset(self) -> Any:
        """The data set."""
        return self._dataset

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers."""
        if self._content is None or in_memory(self._dataset):
            found = content_digest(self._dataset, 0, epoch)
            self._content = "random" if found is None else f"{found:08x}"
        return [
            ("samples", str(self.samples)),
            ("batch_size", str(self.batch_size)),
            ("data", self._content),
        ]

    def _same(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch}

    def _begin(
        self, start: Position, parts: int, shards: int | None, whole: bool
    ) -> Epoch:
        del start, parts, shards, whole
        sizes = [self.batch_size] * self.batches
        sizes[-1] = self.samples - self.batch_size * (self.batches - 1)
        after = Position(0, 1, self.samples)

        def cut(index: int) -> StepShards:
            return StepShards(self, index, np.arange(self.samples), sizes, after)

        return Epoch(cut, range(1))

    @contextmanager
    def open(self, own: Sequence[int]) -> Iterator[Batches]:
        """Inside, batches can be read; loader processes read `own` ahead, in order."""
        spans = [(i, i + 1) for i in own]
        with closing(self.steps(self.batches, own=spans)) as steps:  # type: ignore[type-var]
            yield Batches(next(steps))


_EMPTY = (
    "there is nothing to evaluate: the data set is empty. Its sums have no names and "
    "shapes, since those are what the function returns for a batch"
)


class Batches:
    """Reads the batches of one evaluation."""

    def __init__(self, shards: StepShards) -> None:
        """`shards` is the whole data set."""
        self._shards = shards
        reader: Any = shards.sampler.reader
        rows = None if shards.ahead is not None else reader.rows
        alike = rows is not None and all(t.is_contiguous() for t in rows)
        self._rows = rows if alike else None

    def fetch(
        self, number: int, *, own: bool, between: Callable[[], None]
    ) -> tuple[Any, ...]:
        """Returns a batch as the arguments of the function.

        Args:
            number: of the batch.
            own: whether it is one of those that are read ahead.
            between: called before each sample that is not; what it raises ends it.

        Raises:
            DataError: a sample could not be read.
        """
        shards = self._shards
        if self._rows is not None:  # neighbours are copied faster than chosen
            numbers = shards.request(number)[1]
            begin, end = int(numbers[0]), int(numbers[-1]) + 1
            between()
            return tuple(
                shards.sampler.place([t[begin:end].clone() for t in self._rows])
            )
        if own:
            return shards.fetch(number, between=between)
        source = shards.sampler
        read = source.reader.batch(shards.request(number), between)
        return source.reader.arguments(source.place(read))


def whole_of(
    data: Any,
    batch_size: int | None,
    words: dict[str, Any],
    called: Callable[..., Any],
) -> Whole:
    """Returns the data set that is behind what the user gave.

    What has loader processes keeps them from one evaluation to the next.

    Args:
        data: a map-style data set, a tuple of tensors, a ShardSampler or a DataLoader.
        batch_size: samples of a batch; None: the DataLoader's, else 64.
        words: `collate_fn`, `seed` and those of `LoaderSettings`, for a data set.
        called: what was called with them, for messages.

    Raises:
        ConfigError: it is something else, or words are given where it has its own.
    """
    held = data if not isinstance(data, (ShardSampler, DataLoader)) else data.dataset
    if _samples_of(held) == 0:
        raise ConfigError(_EMPTY)
    if not isinstance(data, (ShardSampler, DataLoader)):
        return _of_dataset(data, batch_size or _BATCH, words, called)
    if words:
        raise ConfigError(
            f"{', '.join(words)}: a {type(data).__name__} has its own; give the data "
            f"set in its place, or make it with these"
        )
    known = _whole.get(data)
    if known is None or known[0] != batch_size:
        if isinstance(data, DataLoader):
            made = _of_loader(data, batch_size)
        else:
            size = batch_size or _BATCH
            made = Whole(data.dataset, data.reader, size, data.loading)
        known = _whole[data] = batch_size, made
    return known[1]


def _of_dataset(
    data: Any, batch_size: int, words: dict[str, Any], called: Callable[..., Any]
) -> Whole:
    if isinstance(data, (Source, IterableDataset)):
        raise ConfigError(
            f"a {type(data).__name__} can only be read on, by its own worker; any "
            f"worker must be able to read any sample: evaluate a map-style data set"
        )
    given = dict(words)
    known = "collate_fn", "seed", *LoaderSettings._fields
    if unknown := set(given) - set(known):
        raise unknown_keywords(called, unknown, known)
    collate, seed = given.pop("collate_fn", None), given.pop("seed", 0)
    settings = LoaderSettings(**given)
    reader = Reader(data, collate, seed, dataset_size(data, 1))
    return Whole(data, reader, batch_size, settings)


def _samples_of(data: Any) -> int | None:
    """Returns the number of samples of a data set, or None if it has no length."""
    tensors = tensors_of(data)
    if tensors:
        data = tensors[0]
    try:
        return len(data)
    except TypeError:
        return None


def _of_loader(loader: DataLoader[Any], batch_size: int | None) -> Whole:
    chosen: Any = loader.sampler
    size = batch_size or loader.batch_size
    known = type(chosen) is DistributedSampler
    if type(chosen) in (SequentialSampler, RandomSampler):
        samples = len(chosen.data_source)
        known = len(chosen) == samples == _samples_of(loader.dataset)
        known = known and not getattr(chosen, "replacement", False)
    if (
        isinstance(loader.dataset, IterableDataset)
        or type(loader.batch_sampler) is not BatchSampler
        or size is None
        or not known
    ):
        raise ConfigError(
            f"this DataLoader chooses its samples by itself ({type(chosen).__name__}, "
            f"{type(loader.batch_sampler).__name__}), and an evaluation goes through "
            f"each sample of a map-style data set once: give the data set itself, or a "
            f"torch.utils.data.Subset of it"
        )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    settings = LoaderSettings()
    if loader.num_workers:
        settings = LoaderSettings(
            num_workers=loader.num_workers,
            prefetch_factor=loader.prefetch_factor,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    data = loader.dataset
    reader = Reader(data, collate, 0, dataset_size(data, 1))
    return Whole(data, reader, size, settings)
