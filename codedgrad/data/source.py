"""What all sources of data have in common: epochs, steps, reading ahead, a position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.data.cost import ReadingCost
from codedgrad.data.loader import Ahead, Loader, LoaderSettings
from codedgrad.data.placing import Placer
from codedgrad.data.position import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from codedgrad.data.loader import BatchReader
    from codedgrad.data.shards import StepShards


class Epoch(NamedTuple):
    """The steps of an epoch that are to come.

    Attributes:
        cut: returns a step by its number in the epoch.
        steps: these numbers.
    """

    cut: Callable[[int], StepShards]
    steps: range


class Source(ABC):
    """Gives `CodedGradient.steps` the steps of an epoch, cut into micro-batches.

    Attributes:
        batch_size: samples of one step, over all workers together.
        seed: seed of the orders and of random augmentation.
        epoch: the epoch that is gone through next, or now.
        helpable: whether any worker may compute any part.
        rows: samples that each number of a step stands for.
        place: copies a batch to the device where it is wanted.
        loading: how batches are read ahead.
        cost: measures what reading in the passes costs; None: it does not.
    """

    batch_size: int
    seed: int
    helpable: bool = True
    rows: int = 1
    cost: ReadingCost | None = None

    @property
    @abstractmethod
    def dataset(self) -> Any:
        """What two samples of are compared between the workers; None: nothing."""

    def __init__(self, reader: BatchReader, settings: LoaderSettings) -> None:
        """Take what reads batches, here and in loader processes.

        Raises:
            ConfigError: the settings do not fit.
        """
        settings.check()
        self._reader, self.loading = reader, settings
        self.place = Placer(settings.device)
        self._loader = Loader(reader, settings) if settings.num_workers else None
        self.epoch = 0
        self._at = Position()
        self._resume: Position | None = None

    # ---- epochs and places in them ----

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next steps."""
        if epoch != self.epoch:
            self._resume = None
            self._at = Position(epoch)
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, for a checkpoint.

        It is behind the last step that `CodedGradient.backward` has computed. All
        workers have the same, so one of them may save it.
        """
        return self._at.state(self._same(self._at.epoch))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next steps at the place of a checkpoint, and set the epoch.

        The samples that were used do not come again in this epoch, and all others do,
        with any number of workers. Later epochs are whole. Call it on every worker.

        Raises:
            ConfigError: the checkpoint is of other data, or another seed, so that these
                would not be the samples that are left.
        """
        self._resume = Position.of(state, self._same(int(state.get("epoch", 0))))
        self._at = self._resume
        self.epoch = self._at.epoch

    @abstractmethod
    def _same(self, epoch: int) -> dict[str, Any]:
        """Return what must be the same where a checkpoint of this epoch is loaded."""

    def note_used(self, position: Position) -> None:
        """Hear that a step was computed; `position` is the place behind it."""
        self._at = position

    # ---- steps ----

    @abstractmethod
    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers.

        Args:
            epoch: an epoch whose steps have begun.
        """

    @abstractmethod
    def _begin(
        self, start: Position, parts: int, shards: int | None, whole: bool
    ) -> Epoch:
        """Return the steps of an epoch from a place on; see `steps`."""

    def indices(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices into the dataset of samples by their numbers."""
        return numbers

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
            ConfigError: a step has fewer samples than passes (shards if `whole`, else
                parts); or the partition is fixed and the shards do not divide the
                parts or the batch size.
        """
        start, self._resume = self._resume or Position(self.epoch), None
        epoch = self._begin(start, parts, shards, whole)
        self._at = start
        if self._loader is None or not own:
            if own and own[0][0] > 0:
                self.cost = None  # the worker of the first part speaks for all
            for index in epoch.steps:
                if (cost := self.cost) is not None:
                    cost.step_begins()
                    if cost.done:
                        self.cost = None
                yield epoch.cut(index)
            return
        ahead = Ahead(self._loader, epoch.cut, epoch.steps, own)
        try:
            for index in epoch.steps:
                ahead.begin(index)
                step = epoch.cut(index)
                step.ahead = ahead
                yield step
        finally:
            ahead.end()

    @property
    def readable_here(self) -> bool:
        """Whether no process that is started later takes over what this one opens."""
        return self._loader is None or self._loader.started_once

    @property
    def reader(self) -> BatchReader:
        """What reads batches."""
        return self._reader
