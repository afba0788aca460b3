"""Reading streams, each from a place of its own: the reader of `ShardStream`.

A stream can only be read on. Its samples so far are counted, and the last ones are
kept, since a step may be computed in pieces, or again. Whoever wants an earlier one
opens the stream anew; whoever wants a later one reads up to it.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import default_collate

from codedgrad.data.reading import collated
from codedgrad.data.seeding import reading_rng, seed_sample
from codedgrad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from codedgrad.data.loader import Request

log = logging.getLogger("codedgrad")
_SHIFT = 40  # a sample's number is its shard's, and its place in the stream
ENDS = ("repeat", "raise")


def first_number(shard: int) -> int:
    """Return the number of the first sample of a shard's stream."""
    return shard << _SHIFT


class Opening(NamedTuple):
    """How streams are opened.

    Attributes:
        make: returns a stream, see `ShardStream`.
        seed: of the random numbers with which samples are read.
        at_end: what follows the end of a stream, of `ENDS`.
        keep: samples to be kept of each stream.
    """

    make: Callable[..., Any]
    seed: int
    at_end: str
    keep: int

    @property
    def takes_start(self) -> bool:
        """Whether `make` can begin a stream at a later place."""
        try:
            return "start" in inspect.signature(self.make).parameters
        except (TypeError, ValueError):
            return False


class Cursor:
    """A place in the stream of one shard in one epoch."""

    def __init__(self, opening: Opening, epoch: int, shard: int) -> None:
        """Open nothing yet."""
        self._opening, self._epoch, self._shard = opening, epoch, shard
        self._stream: Iterator[Any] | None = None
        self._kept: deque[Any] = deque(maxlen=opening.keep)
        self._next = 0  # the place of the sample that comes next
        self._since = 0  # where the stream was opened last
        self._told = False

    @property
    def epoch(self) -> int:
        """The epoch."""
        return self._epoch

    def read(self, place: int, between: Callable[[], None]) -> Any:
        """Return the sample at a place; `between` is called before each that is read.

        Raises:
            DataError: the stream cannot be opened, raises, is empty, or ends and is not
                to begin again.
        """
        if self._stream is None or place < self._next - len(self._kept):
            self._open(place)
        while self._next <= place:
            between()
            self._kept.append(self._one())
            self._next += 1
        return self._kept[place - self._next]

    def _open(self, place: int) -> None:
        """Open the stream so that a place can be reached."""
        start = place if self._opening.takes_start else 0
        self._stream = self._made(start)
        self._kept.clear()
        self._next = self._since = start

    def _made(self, start: int) -> Iterator[Any]:
        opening, shard, epoch = self._opening, self._shard, self._epoch
        more = {"start": start} if opening.takes_start else {}
        self._seed(-1)
        try:
            stream: Iterator[Any] = iter(opening.make(shard, epoch, **more))
        except Exception as error:
            raise DataError(
                f"make({shard}, {epoch}) gave no stream: "
                f"{type(error).__name__}: {error}"
            ) from error
        return stream

    def _one(self) -> Any:
        assert self._stream is not None  # since `read`
        for _ in range(3):
            self._seed(self._next)
            try:
                return next(self._stream)
            except StopIteration:
                self._begin_again()
            except Exception as error:
                raise DataError(
                    f"sample {self._next} of the stream of shard {self._shard} in "
                    f"epoch {self._epoch} could not be read: "
                    f"{type(error).__name__}: {error}"
                ) from error
        raise DataError(f"make({self._shard}, {self._epoch}) gave an empty stream")

    def _begin_again(self) -> None:
        """Go on with the stream's begin, after its end."""
        length = self._next - self._since
        if self._since > 0 and length == 0:  # it is shorter than the place wanted
            wanted = self._next
            self._stream = self._made(0)
            self._next = self._since = 0
            while self._next < wanted:
                self._one()
                self._next += 1
            return
        place = f"the stream of shard {self._shard} ended after {self._next} samples"
        if self._opening.at_end == "raise" and self._next:
            raise DataError(
                f"{place} of epoch {self._epoch}, and more are wanted; give fewer "
                f'steps, or at_end="repeat" to begin it again'
            )
        if length and not self._told:
            log.warning("%s of epoch %d and begins again", place, self._epoch)
        self._told = True
        self._stream = self._made(0)
        self._since = self._next

    def _seed(self, place: int) -> None:
        number = first_number(self._shard) + place
        seed_sample(self._opening.seed, self._epoch, number)


class StreamReader:
    """Reads batches of streams. A loader process has a copy of it."""

    def __init__(
        self, opening: Opening, collate_fn: Callable[[list[Any]], Any] | None
    ) -> None:
        """Take what opens streams; None collates as torch."""
        self._opening = opening
        self.collate = collate_fn or default_collate
        self._cursors: dict[int, Cursor] = {}

    def __getitem__(self, request: Request) -> Any:
        """Return what `batch` returns, as a DataLoader asks for it."""
        return self.batch(request, lambda: None)

    def batch(self, request: Request, between: Callable[[], None]) -> Any:
        """Return the collated batch of some samples of an epoch.

        Args:
            request: the epoch, and the samples by number.
            between: called before each sample; what it raises ends the reading, and the
                next one goes on from there.

        Raises:
            DataError: a sample could not be read, or they could not be collated.
        """
        epoch, numbers = request
        with reading_rng():
            samples = []
            for number in numbers.tolist():
                shard, place = number >> _SHIFT, number & ((1 << _SHIFT) - 1)
                cursor = self._cursors.get(shard)
                if cursor is None or cursor.epoch != epoch:
                    cursor = Cursor(self._opening, epoch, shard)
                    self._cursors[shard] = cursor
                samples.append(cursor.read(place, between))
            seed_sample(self._opening.seed, epoch, ~int(numbers[0]))
            first = int(numbers[0]) & ((1 << _SHIFT) - 1)
            what = f"samples from {first} of the stream of shard {numbers[0] >> _SHIFT}"
            return collated(self.collate, samples, what)

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """Return a batch as the arguments of a loss function, as `Reader` does."""
        if isinstance(batch, list) and self.collate is default_collate:
            return tuple(batch)
        return batch if isinstance(batch, tuple) else (batch,)


class Probe:
    """The first samples of the streams, opened anew each time, as a dataset.

    The workers read some of them twice, to see that whoever opens a stream gets the
    same samples.
    """

    def __init__(self, opening: Opening, shards: int) -> None:
        """Take what opens the streams, and their number."""
        self._opening, self._shards = opening, shards
        self.epoch = 0

    def __len__(self) -> int:
        return self._shards

    def __getitem__(self, shard: int) -> Any:
        """Return the first sample of a stream."""
        return Cursor(self._opening, self.epoch, shard).read(0, lambda: None)


def check_opening(opening: Opening) -> None:
    """Refuse what opens no streams.

    Raises:
        ConfigError: with the remedy.
    """
    if not callable(opening.make):
        raise ConfigError(
            f"ShardStream takes a function make(shard, epoch) that returns an "
            f"iterator, got {type(opening.make).__name__}; for an IterableDataset give "
            f"lambda shard, epoch: ... that makes the one of the shard"
        )
    if opening.at_end not in ENDS:
        raise ConfigError(f"at_end must be one of {ENDS}, got {opening.at_end!r}")
