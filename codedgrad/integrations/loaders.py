"""A DataLoader that the user has made becomes a ShardSampler.

A framework's loop asks the DataLoader for one batch after the other, and a helper needs
any batch of any worker. So the dataset, the collate function and the words of the
DataLoader are taken over, and what it would have loaded is loaded by shards.

`batch_size` is that of one worker, as with DDP: a step has batch_size x workers
samples.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from codedgrad.codes import spread
from codedgrad.data import ShardSampler, StepShards
from codedgrad.data.samples import tensors_of
from codedgrad.errors import ConfigError
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from codedgrad.codes import Code
    from codedgrad.gradient import CodedGradient
    from codedgrad.job.settings import RunSettings

_ANY_ORDER = (
    "any worker must be able to compute any shard: give the DataLoader batch_size and "
    "shuffle, and put a choice of samples into the dataset (torch.utils.data.Subset)"
)


class Batch:
    """What a collate function returned; one argument of the loss function."""

    def __init__(self, value: Any) -> None:
        """Wrap a batch."""
        self.value = value

    @classmethod
    def of_value(cls, value: Any) -> Batch:
        """Wrap a piece of a batch; see `codedgrad.step.slices`."""
        return cls(value)

    def pin_memory(self) -> Batch:
        """Return it in pinned memory; loader processes ask for this."""
        from torch.utils.data._utils.pin_memory import pin_memory

        return Batch(pin_memory(self.value))


class _Collate:
    """Collates into a `Batch`. A class, since loader processes may pickle it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Batch:
        return Batch(self._collate(items))


def batch_of(arguments: tuple[Any, ...]) -> Any:
    """Return the batch that the DataLoader would have given.

    Args:
        arguments: with which a loss function is called, of a sampler by `take_over`.
    """
    first = arguments[0]
    return first.value if isinstance(first, Batch) else list(arguments)


def take_over(loader: Any, workers: int, seed: int) -> ShardSampler:
    """Return a sampler of the data that a DataLoader would load.

    Args:
        loader: the DataLoader, with the batch size of one worker.
        workers: the number of workers.
        seed: seed of the permutations, and of random numbers in the samples.

    Raises:
        ConfigError: it is no DataLoader, its dataset has no length, or samples are
            chosen or put together in a way that cannot be taken over; it says which.
    """
    if not isinstance(loader, DataLoader):
        raise ConfigError(
            f"the training data are a {type(loader).__name__}, wanted a "
            f"torch.utils.data.DataLoader; {_ANY_ORDER}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"the training dataset {type(loader.dataset).__name__} is an "
            f"IterableDataset, which only its own worker can read; any worker must be "
            f"able to read any sample: use a map-style dataset"
        )
    if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        kind = type(loader.batch_sampler).__name__
        own = f"a batch_sampler of its own ({kind})"
        raise ConfigError(
            f"the training DataLoader has "
            f"{'batch_size=None' if loader.batch_sampler is None else own}; "
            f"{_ANY_ORDER}"
        )
    collate: Any = loader.collate_fn
    if collate is default_collate and tensors_of(loader.dataset) is not None:
        collate = None  # tensors are indexed, which is faster
    else:
        collate = _Collate(collate)
    words: dict[str, Any] = {}
    if loader.num_workers:
        words = {
            "num_workers": loader.num_workers,
            "prefetch_factor": loader.prefetch_factor,
            "pin_memory": loader.pin_memory and torch.cuda.is_available(),
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return ShardSampler(
        loader.dataset,
        loader.batch_size * workers,
        seed=seed,
        shuffle=_shuffled(loader),
        drop_last=loader.drop_last,
        collate_fn=collate,
        **words,
    )


def _shuffled(loader: DataLoader[Any]) -> bool:
    """Return whether a DataLoader shuffles its samples.

    Raises:
        ConfigError: it chooses them in another way.
    """
    sampler: Any = loader.sampler
    if type(sampler) is DistributedSampler:
        return bool(sampler.shuffle)
    whole = len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    if whole and type(sampler) is SequentialSampler:
        return False
    if whole and type(sampler) is RandomSampler and not sampler.replacement:
        return True
    raise ConfigError(
        f"the training DataLoader has a sampler of its own ({type(sampler).__name__}); "
        f"{_ANY_ORDER}"
    )


class StepLoader:
    """Stands in a loop for the train DataLoader, and gives one `StepShards` a step.

    Attributes:
        sampler: of the steps, whose `set_epoch` the loop calls.
    """

    def __init__(
        self, begin: Callable[[], CodedGradient], sampler: ShardSampler
    ) -> None:
        """Give the steps of `sampler`; `begin` returns who cuts and computes them."""
        self._begin = begin
        self.sampler = sampler
        self._next = 0  # the number of the next step in the epoch
        self._resumed: dict[str, int] | None = None

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[StepShards]:
        """Yield the steps of an epoch, or what is left of one that is resumed."""
        resumed, self._resumed = self._resumed, None
        self._next = 0
        if resumed is not None and resumed["epoch"] == self.sampler.epoch:
            self._next = resumed["next"]
            if self._next and resumed["batch_size"] != self.sampler.batch_size:
                raise ConfigError(
                    f"the checkpoint is from the middle of an epoch with steps of "
                    f"{resumed['batch_size']} samples, and a step has "
                    f"{self.sampler.batch_size} now: keep batch_size x workers, or go "
                    f"on from a checkpoint of an epoch's end"
                )
        steps = self._begin().steps(self.sampler)
        for shards in itertools.islice(steps, self._next, None):
            self._next = shards.index + 1
            yield shards

    def state_dict(self) -> dict[str, int]:
        """Return where in the data training is."""
        sampler = self.sampler
        state = {"epoch": sampler.epoch, "batch_size": sampler.batch_size}
        return {**state, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, if the next epoch to be read is still the same."""
        self._resumed = state


def data_loader_of_steps(
    begin: Callable[[], CodedGradient], sampler: ShardSampler
) -> DataLoader[Any]:
    """Return a DataLoader of torch whose batches are steps.

    It is for loops that look into their DataLoader, and make another one of it to skip
    its first batches.

    Args:
        begin: returns who cuts and computes the steps.
        sampler: of the steps.
    """
    return DataLoader(
        _Same(len(sampler.dataset)),
        batch_sampler=_Steps(begin, sampler),
        collate_fn=_only,
        generator=torch.Generator(),  # the global one belongs to the user
    )


class _Same(Dataset[Any]):
    """Gives back what it is asked for."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, step: Any) -> Any:
        return step


class _Steps:
    """What a DataLoader takes for its batch sampler: steps, each in a list."""

    def __init__(
        self, begin: Callable[[], CodedGradient], sampler: ShardSampler
    ) -> None:
        self._begin, self._sampler = begin, sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[StepShards]]:
        for shards in self._begin().steps(self._sampler):
            yield [shards]

    @property
    def batch_sampler(self) -> _Steps:
        """Itself: loops look here for whom to tell the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)


def _only(batch: list[Any]) -> Any:
    return batch[0]


class ForBatches:
    """Calls a loop's hook for the batches of passes, and not for a whole step."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """`function` takes a batch, and whatever else."""
        self._function = function

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what it returns; or the step, if it is one."""
        if isinstance(batch, StepShards):
            return batch
        return self._function(batch, *args, **kwargs)


def code_for(code: Code | None, batch_size: int, run: RunSettings) -> Code | None:
    """Return the user's code; where there is none, one that suits the batches.

    None is what `CodedGradient` takes. With `same_bits` every pass is cut into pieces,
    and a batch must have samples for all of them. Then four workers cut a shard in
    three, because three helpers would need two rounds for four.

    Args:
        code: the user's.
        batch_size: of one worker.
        run: of it `same_bits` and `local_group`.
    """
    if code is not None or run.local_group is not None or not run.same_bits:
        return code
    workers = runtime.size()
    return spread(workers, micro=min(3 if workers == 4 else 4, batch_size))
