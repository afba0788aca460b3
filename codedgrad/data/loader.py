"""Loader processes: the batches of a worker's own passes, read before they are needed.

A DataLoader of torch does the work. Its sampler is ours: it gives, step after step, the
samples of the worker's own passes, which are known for the whole epoch. A step whose
batches nobody has asked for by the time the next one begins was decoded without this
worker; they are dropped, and the sampler leaves out what is over already.

Batches of other workers' shards, which only helpers need, are read in the training
process when they are asked for. They are the same, see `codedgrad.data.reading`. Where
this worker has helped with the same ones in several steps, one after the other, a
worker is late in every step, and they are read ahead, too.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import torch
from torch.utils.data import DataLoader

from codedgrad.data.sending import Sending, remedy_of
from codedgrad.errors import ConfigError, DataError, unknown_keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from codedgrad.data.shards import StepShards

    Span = tuple[int, int]
    Request = tuple[int, NDArray[Any]]


class BatchReader(Protocol):
    """Reads batches; see `codedgrad.data.reading.Reader`."""

    def __getitem__(self, request: Request) -> Any:
        """Return a batch of an epoch's samples, as a DataLoader asks for it."""

    def batch(self, request: Request, between: Callable[[], None]) -> Any:
        """Return the same; `between` is called before each sample."""

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """Return a batch as the arguments of a loss function."""


log = logging.getLogger("codedgrad")
_IN_A_ROW = 3  # steps in which this worker helped, before it expects to help again


class LoaderWords(TypedDict, total=False):
    """The fields of `LoaderSettings`, as keywords."""

    num_workers: int
    prefetch_factor: int | None
    pin_memory: bool
    persistent_workers: bool
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    device: Any


class LoaderSettings(NamedTuple):
    """How batches are read ahead; the words are those of torch's DataLoader.

    Attributes:
        num_workers: loader processes of this worker; 0 reads in the training process.
        prefetch_factor: batches that each of them reads ahead; None: 2.
        pin_memory: whether batches are put into pinned memory.
        persistent_workers: whether the processes stay from one epoch to the next.
        worker_init_fn: called in each process with its number, as it starts.
        multiprocessing_context: how processes are started; None: torch's default.
        device: where batches are copied to, see `codedgrad.data.placing`; None: they
            stay where they were made.
    """

    num_workers: int = 0
    prefetch_factor: int | None = None
    pin_memory: bool = False
    persistent_workers: bool = True
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    device: Any = None

    @classmethod
    def of(cls, called: Callable[..., Any], words: Mapping[str, Any]) -> LoaderSettings:
        """Return the settings that were given as keywords of what was called.

        Raises:
            TypeError: there is no such keyword.
        """
        if unknown := set(words) - set(cls._fields):
            raise unknown_keywords(called, unknown, cls._fields)
        return cls(**words)

    def check(self) -> None:
        """Refuse settings that do not fit.

        Raises:
            ConfigError: with the remedy.
        """
        if not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise ConfigError(
                f"num_workers must be a number of processes, 0 or more, got "
                f"{self.num_workers!r}"
            )
        if self.prefetch_factor is not None and self.prefetch_factor < 1:
            raise ConfigError(
                f"prefetch_factor must be at least 1, got {self.prefetch_factor}"
            )
        if self.num_workers == 0:
            usual = LoaderSettings()._replace(
                persistent_workers=self.persistent_workers, device=self.device
            )
            if others := [f for f in self._fields if self[_at(f)] != usual[_at(f)]]:
                raise ConfigError(
                    f"{', '.join(others)}: that is for loader processes, and there are "
                    f"none; set num_workers to 1 or more"
                )


def _at(field: str) -> int:
    return LoaderSettings._fields.index(field)


class _Requests:
    """What a DataLoader takes for its sampler: the requests of the present epoch.

    Nothing that a DataLoader holds may lead back to it. Python would take such a cycle
    apart in an order in which torch cannot tell its processes to end, and torch then
    waits 5 s for each.
    """

    def __init__(self) -> None:
        self.now: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.now


class Loader:
    """The loader processes of one sampler; they serve one epoch at a time."""

    def __init__(self, reader: BatchReader, settings: LoaderSettings) -> None:
        """Prepare; processes start with the first epoch."""
        self._reader, self._settings = reader, settings
        self._data: DataLoader[Any] | None = None
        self._batches: Any = None
        self._epoch: Ahead | None = None
        self._requests = _Requests()

    @property
    def started_once(self) -> bool:
        """Whether the processes start before this one has read anything for a step."""
        return self._settings.persistent_workers

    def begin(self, epoch: Ahead, requests: Iterator[Request]) -> None:
        """Read another epoch, from its begin."""
        if self._epoch is not None:
            self._epoch.end()
        self._epoch, self._requests.now = epoch, requests
        settings = self._settings
        if self._data is None:
            self._data = DataLoader(
                Sending(self._reader),  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._requests,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # the global one belongs to the user
                num_workers=settings.num_workers,
                prefetch_factor=settings.prefetch_factor,
                pin_memory=settings.pin_memory,
                persistent_workers=settings.persistent_workers,
                worker_init_fn=settings.worker_init_fn,
                multiprocessing_context=settings.multiprocessing_context,
            )
        self._batches = None  # ends the processes of the epoch before
        try:
            self._batches = iter(self._data)
        except Exception as error:
            raise DataError(
                f"{type(error).__name__}: {error}; {remedy_of(error, starting=True)}"
            ) from error

    def end(self, epoch: Ahead) -> None:
        """Note that nobody will ask for batches of this epoch any more."""
        if self._epoch is epoch:
            self._epoch = self._batches = None
            self._requests.now = iter(())

    def serves(self, epoch: Ahead) -> bool:
        """Return whether it reads this epoch, and no other one since."""
        return self._epoch is epoch

    def next(self, what: str) -> Any:
        """Return the next batch that was asked for.

        Raises:
            DataError: it could not be read, or a process has died.
        """
        try:
            return next(self._batches)
        except DataError as error:
            self._stop()
            if remedy := remedy_of(error):
                raise DataError(f"{error}\n{remedy}") from error
            raise
        except (RuntimeError, OSError) as error:
            self._stop()
            raise DataError(
                f"a loader process died, or could not hand on what it has read, while "
                f"{what} were read ahead: {error}\n{remedy_of(error)}"
            ) from error

    def _stop(self) -> None:
        """End the processes now.

        The error holds on to the loader for as long as somebody looks at it, and torch
        would wait for the processes when they are forgotten, in whatever comes next.
        """
        batches, self._batches, self._data = self._batches, None, None
        self._epoch = None
        stop = getattr(batches, "_shutdown_workers", None)
        if stop is not None:
            stop()


class Ahead:
    """The own batches of one epoch, in the order in which they will be asked for."""

    def __init__(
        self,
        loader: Loader,
        cut: Callable[[int], StepShards],
        steps: Sequence[int],
        spans: Sequence[Span],
    ) -> None:
        """Begin to read.

        Args:
            loader: the processes.
            cut: returns a step of the epoch by its number.
            steps: the numbers of the steps.
            spans: the own passes of each step: the first part, and one past the last.
        """
        self._loader, self._cut, self._steps = loader, cut, steps
        self._places = {span: place for place, span in enumerate(spans)}
        self._own = len(self._places)
        # The last step in which a batch was helped with, and how many in a row.
        self._helped: dict[Span, tuple[int, int]] = {}
        self._sent: deque[tuple[int, int]] = deque()  # steps and places, being read
        self._now = 0
        self._requests = self._all_requests()
        loader.begin(self, self._requests)

    def _all_requests(self) -> Generator[Request, None, None]:
        """Yield the epoch and the samples of each batch, from the present step on."""
        for index in self._steps:
            if index < self._now:
                continue
            step = self._cut(index)
            for span, place in list(self._places.items()):
                wanted = place < self._own or self._expects(span)
                if wanted and step.samples(*span):
                    self._sent.append((index, place))
                    yield step.request(*span)

    def _expects(self, span: Span) -> bool:
        """Return whether this worker is likely to help with this batch again."""
        last, row = self._helped[span]
        return row >= _IN_A_ROW and self._now - last <= 1

    def begin(self, index: int) -> None:
        """Hear that a step begins."""
        self._now = index

    def end(self) -> None:
        """Hear that the epoch is over."""
        self._requests.close()
        self._loader.end(self)

    def take(self, index: int, span: Span) -> tuple[Any, ...]:
        """Return a tuple of a batch; or an empty one if it is not read ahead.

        That is so if it is another worker's that this one has not helped in all of the
        last steps, or if it was taken before.

        Raises:
            DataError: it could not be read.
        """
        place = self._places.setdefault(span, len(self._places))
        if place >= self._own:
            last, row = self._helped.get(span, (index, 0))
            self._helped[span] = index, row + 1 if index - last <= 1 else 1
        wanted = index, place
        while self._loader.serves(self) and self._sent and self._sent[0] <= wanted:
            sent = self._sent.popleft()
            try:
                batch = self._loader.next(f"samples of step {sent[0]}")
            except DataError as error:
                if sent == wanted:
                    raise
                log.debug("read ahead in vain: %s", error)  # nobody wants it any more
                continue
            if sent == wanted:
                return (batch,)
        return ()


def _as_it_is(batch: Any) -> Any:
    return batch
