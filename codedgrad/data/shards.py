"""One step's data, as its parts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from codedgrad.data.loader import Ahead, Request
    from codedgrad.data.position import Position
    from codedgrad.data.source import Source


class StepShards:
    """One step's data, part by part.

    Attributes:
        sampler: the sampler whose step it is.
        epoch: the sampler's epoch.
        index: number of the step within the epoch.
        before: samples of the epoch that were used before this step.
        parts: number of micro-batches.
        sizes: samples of each part. A shard's parts are as even as possible, and
            larger ones come first; in a short last step some may be empty (see
            `part_sizes`).
        total: samples of the step.
        ahead: what reads the own batches ahead; None: nothing does.
    """

    ahead: Ahead | None = None

    def __init__(
        self,
        sampler: Source,
        index: int,
        samples: NDArray[np.int64],
        sizes: Sequence[int],
        after: Position,
    ) -> None:
        """Cut `samples`, which are numbers, into parts of these sizes.

        `after` is the place in the epoch behind this step.
        """
        self.sampler = sampler
        self._samples, self._after = samples, after
        self.epoch = after.epoch
        self.index = index
        self.before = after.samples - len(samples)
        self.parts = len(sizes)
        self.total = len(samples)
        self.sizes = tuple(sizes)
        self._starts = [0, *np.cumsum(self.sizes).tolist()]

    def __iter__(self) -> NoReturn:
        """Refuse a loop over what is to be given to `backward`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a step's shards are no batch to loop over or to unpack: give them to "
            "coded.backward(loss_fn, shards), which calls the loss function with the "
            "tensors of a batch, as in lambda x, y: criterion(model(x), y)"
        )

    def indices(self, part: int, stop: int | None = None) -> NDArray[np.int64]:
        """Return the samples of `part`, as indices into the dataset.

        With `stop` they are those of the parts from `part` to `stop` - 1, in order.
        """
        return self.sampler.indices(self.request(part, stop)[1])

    def request(self, part: int, stop: int | None = None) -> Request:
        """Return the epoch and the samples of `part` by number, for a reader."""
        end = part + 1 if stop is None else stop
        return self.epoch, self._samples[self._starts[part] : self._starts[end]]

    def note_used(self) -> None:
        """Hear that the step was computed; `sampler.state_dict()` is behind it now."""
        self.sampler.note_used(self._after)

    def samples(self, part: int, stop: int | None = None) -> int:
        """Return the number of samples that `indices` gives."""
        return sum(self.sizes[part : part + 1 if stop is None else stop])

    def weight(self, part: int, stop: int | None = None) -> float:
        """Return the share of the step's samples that `indices` gives.

        It is the weight of their mean gradient in the step's.
        """
        end = part + 1 if stop is None else stop
        return sum(self.sizes[part:end]) / self.total

    def fetch(
        self,
        part: int,
        stop: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> tuple[Any, ...]:
        """Return the batch of `indices`, with which the loss function is called.

        Args:
            part: the first part.
            stop: one past the last part; None: `part` alone.
            between: called before each sample that is read here and not ahead; what it
                raises ends the reading.

        Raises:
            DataError: a sample could not be read.
        """
        reader, end = self.sampler.reader, part + 1 if stop is None else stop
        if self.ahead is not None:
            for batch in self.ahead.take(self.index, (part, end)):
                return reader.arguments(self.sampler.place(batch))
        return self.read(part, end, between)

    def read(
        self, part: int, stop: int, between: Callable[[], None] | None = None
    ) -> tuple[Any, ...]:
        """Return what `fetch` does, read here; what is read ahead stays there."""
        reader, cost = self.sampler.reader, self.sampler.cost
        with nullcontext() if cost is None else cost.reading():
            read = reader.batch(self.request(part, stop), between or _nothing)
        return reader.arguments(self.sampler.place(read))


def _nothing() -> None:
    pass
