"""Data that come as streams: IterableDataset, WebDataset, Hugging Face's streaming."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.data.cursors import (
    Opening,
    Probe,
    StreamReader,
    check_opening,
    first_number,
)
from codedgrad.data.loader import LoaderSettings
from codedgrad.data.order import check_enough, even
from codedgrad.data.position import Position
from codedgrad.data.shards import StepShards
from codedgrad.data.source import Epoch, Source
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from codedgrad.data.loader import LoaderWords


class ShardStream(Source):
    """The steps of streams, of which every shard has its own.

    `make(stream, epoch)` returns a stream in an epoch: an iterator, or anything that
    has one, over samples. Every step takes the next batch_size / s samples of each of
    the s streams. There is one for each shard, so one for each worker with the usual
    codes, or `streams` of them, which the shards divide. Each worker opens those of its
    own shard. A function with a parameter `start`, `make(stream, epoch, start)`, begins
    the stream at that sample, which saves reading up to it.

    What a step has of a given number of streams does not depend on the number of
    workers, so any number up to `streams` may go on from a checkpoint.

    An epoch has `steps` steps on all workers, however long the streams are: a longer
    one is cut, and a shorter one begins again, or ends the job with at_end="raise".

    With helpers=False, a late worker's shard is waited for. With helpers=True a helper
    opens the late worker's stream and reads up to its place, and a worker that was
    helped reads on to its own. Then `make` must give the same samples whenever and
    wherever it is called with the same arguments. The workers try that in their first
    step. The generators of torch, numpy and `random` are seeded before a stream is
    opened and before each sample, from (seed, epoch, stream, place).
    """

    def __init__(
        self,
        make: Callable[..., Any],
        batch_size: int,
        steps: int,
        *,
        streams: int | None = None,
        helpers: bool = False,
        at_end: str = "repeat",
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **loading: Unpack[LoaderWords],
    ) -> None:
        """Stream `steps` steps of `batch_size` in every epoch.

        Args:
            make: see the class.
            batch_size: samples of one step, over all workers together.
            steps: steps of an epoch.
            streams: their number s, at least that of the workers; None: one per shard.
            helpers: whether helpers open the streams of late workers.
            at_end: "repeat" begins a stream again that has ended before the epoch has;
                "raise" is an error.
            seed: seed of the random numbers.
            collate_fn: makes a batch from a list of samples; None is torch's default.
            **loading: how batches are read ahead, see `LoaderSettings`; at most one
                loader process, since a stream is read in its order.

        Raises:
            ConfigError: bad arguments.
        """
        sizes = {"steps": steps, "batch_size": batch_size, "streams": streams}
        for name, value in sizes.items():
            if name == "streams" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a number from 1, got {value!r}")
        self._opening = Opening(make, seed, at_end, keep=batch_size)
        check_opening(self._opening)
        settings = LoaderSettings.of(ShardStream, loading)
        if settings.num_workers > 1:
            raise ConfigError(
                f"num_workers={settings.num_workers}: a stream is read in its order, "
                f"by one loader process at most. Let make() return a DataLoader with "
                f"batch_size=None and processes of its own, and use num_workers=0"
            )
        super().__init__(StreamReader(self._opening, collate_fn), settings)
        self.batch_size, self.seed, self.helpable = batch_size, seed, helpers
        self._steps, self._streams = steps, streams
        self._probe: Probe | None = None
        self._probed = not helpers

    @property
    def dataset(self) -> Any:
        """The first samples of streams, in the first epoch with helpers; else None."""
        return self._probe

    @property
    def must_repeat(self) -> bool:
        """Whether samples that are not the same in every reading are an error."""
        return self.helpable

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self._steps

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers."""
        values = {
            "batch_size": self.batch_size,
            "steps": self._steps,
            "streams": self._streams,
            "sampler seed": self.seed,
            "helpers": self.helpable,
            "at_end": self._opening.at_end,
            "epoch": epoch,
        }
        return [(name, str(value)) for name, value in values.items()]

    def _same(self, _: int) -> dict[str, Any]:
        return {"seed": self.seed, "steps": self._steps}

    def _begin(
        self, start: Position, parts: int, shards: int | None, whole: bool
    ) -> Epoch:
        shards = shards or parts
        streams = self._streams or shards
        each = self._of_each(streams, shards, start)
        size, step = self.batch_size, f"batch_size={self.batch_size}"
        check_enough(size, parts, shards, whole=whole, step=step)
        if self._probed:
            self._probe = None
        else:
            self._probe, self._probed = Probe(self._opening, streams), True
            self._probe.epoch = start.epoch
        sizes = [
            size
            for own in even(streams, shards)  # shards have neighbouring streams
            for size in even(own * each, parts // shards)
        ]
        read = sum(e * steps for e, _, steps in start.parts)
        begins = np.array([first_number(stream) for stream in range(streams)])

        def cut(index: int) -> StepShards:
            made = index - start.steps
            place = read + made * each
            numbers = (begins[:, None] + np.arange(place, place + each)).reshape(-1)
            used = start.samples + (made + 1) * self.batch_size
            after = Position(start.epoch, index + 1, used)
            after.parts = [*start.parts, [each, streams, made + 1]]
            return StepShards(self, index, numbers, sizes, after)

        return Epoch(cut, range(start.steps, self._steps))

    def _of_each(self, streams: int, shards: int, start: Position) -> int:
        """Return how many samples of each stream a step takes.

        Raises:
            ConfigError: streams, shards, batch and checkpoint do not fit together.
        """
        if other := [s for _, s, _ in start.parts if s != streams]:
            raise ConfigError(
                f"the checkpoint has read from {other[0]} streams, and there are "
                f"{streams} now: which samples are left cannot be told. Give streams="
                f"{other[0]}, for at most {other[0]} workers, or begin the next epoch: "
                f"set_epoch({start.epoch + 1})"
            )
        if streams < shards:
            raise ConfigError(
                f"streams={streams} cannot be divided among {shards} shards: give "
                f"more, or start at most {streams} workers"
            )
        each, rest = divmod(self.batch_size, streams)
        if rest:
            raise ConfigError(
                f"streams need a batch_size ({self.batch_size}) that is a multiple of "
                f"their number, {streams}"
            )
        return each
