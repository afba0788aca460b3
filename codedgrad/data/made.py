"""Data that a pass makes itself: windows of a file of tokens, rollouts, noise.

What is made follows from (seed, epoch, step, index) alone, so any worker can make what
another one would have, and any number of workers makes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from codedgrad.data.loader import LoaderSettings
from codedgrad.data.order import check_enough, sizes_of
from codedgrad.data.placing import joined
from codedgrad.data.position import Position
from codedgrad.data.seeding import reading_rng, seed_sample
from codedgrad.data.shards import StepShards
from codedgrad.data.source import Epoch, Source
from codedgrad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from codedgrad.data.loader import LoaderWords, Request


@dataclass(frozen=True)
class Draw:
    """What a function of `batches` is asked for.

    Attributes:
        epoch: the epoch.
        step: the number of the step in the epoch.
        index: the number of the first sample in the step's whole batch.
        count: the number of samples.
    """

    epoch: int
    step: int
    index: int
    count: int


class _Draws:
    """All draws of an epoch as a dataset; the workers compare some of them."""

    def __init__(self, fn: Callable[..., Any], steps: int, units: int, count: int):
        self._fn, self._steps, self._units, self._count = fn, steps, units, count
        self.epoch = 0
        of_fn = getattr(fn, "__qualname__", type(fn).__name__)
        self.title = f"the function {of_fn} of batches()"

    def __len__(self) -> int:
        return self._steps * self._units

    def __getitem__(self, number: int) -> Any:
        """Return what the function makes; the global generators are seeded for it."""
        step, unit = divmod(number, self._units)
        draw = Draw(self.epoch, step, unit * self._count, self._count)
        generator = torch.Generator()
        generator.manual_seed(torch.initial_seed())
        made = self._fn(draw, generator)
        if (got := _not_rows(made, self._count)) is not None:
            raise DataError(
                f"{self.title} returned {got} for draw.count = {self._count}: wanted "
                f"one row for each of the samples, first dimension {self._count}, "
                f"since a step's mean counts samples. Return draw.count rows; for "
                f"samples of unequal lengths, pad them or return a list with one "
                f"tensor for each, and let the loss function return (loss, weight)"
            )
        return made


def _not_rows(made: Any, count: int) -> str | None:
    """Return in words the first member that has not `count` rows; None: all have."""
    if isinstance(made, Tensor | np.ndarray):
        if made.ndim and len(made) == count:
            return None
        return f"a {type(made).__name__} of shape {tuple(made.shape)}"
    if isinstance(made, PackedSequence):
        rows = int(made.batch_sizes[0])
        return None if rows == count else f"a PackedSequence of {rows}"
    if isinstance(made, list):
        return None if len(made) == count else f"a list of {len(made)}"
    if isinstance(made, Mapping):
        made = tuple(made.values())
    members = made if isinstance(made, tuple) else ()
    return next(filter(None, (_not_rows(m, count) for m in members)), None)


class MadeReader:
    """Makes the batches that are asked for. Loader processes have copies of it."""

    def __init__(self, draws: _Draws, seed: int) -> None:
        """Take all draws of an epoch, and the seed of the random numbers."""
        self._draws, self._seed = draws, seed

    def __getitem__(self, request: Request) -> Any:
        """Return what `batch` returns, as a DataLoader asks for it."""
        return self.batch(request, lambda: None)

    def batch(self, request: Request, between: Callable[[], None]) -> Any:
        """Return the batch of some draws of an epoch.

        Args:
            request: the epoch, and the draws by number.
            between: called before each draw; what it raises ends the making.

        Raises:
            DataError: the function raised an error, or returned another number of
                samples, or what it returned for several draws cannot be joined.
        """
        epoch, numbers = request
        self._draws.epoch = epoch
        made = []
        with reading_rng():
            for number in numbers.tolist():
                between()
                seed_sample(self._seed, epoch, number)
                try:
                    made.append(self._draws[number])
                except DataError:
                    raise
                except Exception as error:
                    raise DataError(
                        f"draw {number} of epoch {epoch} could not be made: "
                        f"{type(error).__name__}: {error}"
                    ) from error
        try:
            return joined(made)
        except (ConfigError, RuntimeError) as error:
            raise DataError(f"draws of epoch {epoch} make no batch: {error}") from error

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """Return a batch as the arguments of a loss function: a tuple's members are."""
        return batch if isinstance(batch, tuple) else (batch,)


class MadeBatches(Source):
    """The steps whose data a function makes; see `batches`."""

    def __init__(
        self,
        fn: Callable[[Draw, torch.Generator], Any],
        steps: int,
        batch_size: int,
        *,
        chunk: int,
        seed: int,
        **loading: Unpack[LoaderWords],
    ) -> None:
        """See `batches`."""
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a number from 1, got {value!r}")
        if chunk < 1 or batch_size % chunk:
            raise ConfigError(
                f"chunk={chunk} must divide batch_size={batch_size}: so many samples "
                f"are made by one call"
            )
        if not callable(fn):
            raise ConfigError(
                f"batches() takes a function fn(draw, generator), got "
                f"{type(fn).__name__}; a dataset is for ShardSampler"
            )
        self._steps, self._chunk, self._units = steps, chunk, batch_size // chunk
        self._draws = _Draws(fn, steps, self._units, chunk)
        settings = LoaderSettings.of(batches, loading)
        super().__init__(MadeReader(self._draws, seed), settings)
        self.batch_size, self.seed, self.rows = batch_size, seed, chunk

    @property
    def dataset(self) -> Any:
        """All draws of an epoch, of which the workers compare some."""
        return self._draws

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self._steps

    def describe(self, epoch: int) -> list[tuple[str, str]]:
        """Return (name, value) pairs that must be the same on all workers."""
        return [(k, str(v)) for k, v in [*self._same(epoch).items(), ("epoch", epoch)]]

    def _same(self, _: int) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "batch_size": self.batch_size,
            "chunk": self._chunk,
            "seed": self.seed,
        }

    def _begin(
        self, start: Position, parts: int, shards: int | None, whole: bool
    ) -> Epoch:
        units = self._units
        step = f"batch_size={self.batch_size}, made {self._chunk} at a time,"
        check_enough(units, parts, shards, whole=whole, step=step)
        of_shards = shards if whole else None
        sizes = sizes_of(units, parts, of_shards, units)
        self._draws.epoch = start.epoch

        def cut(index: int) -> StepShards:
            numbers = np.arange(index * units, (index + 1) * units)
            after = Position(start.epoch, index + 1, (index + 1) * units)
            return StepShards(self, index, numbers, sizes, after)

        return Epoch(cut, range(start.steps, self._steps))


def batches(
    fn: Callable[[Draw, torch.Generator], Any],
    steps: int,
    batch_size: int,
    *,
    chunk: int = 1,
    seed: int = 0,
    **loading: Unpack[LoaderWords],
) -> MadeBatches:
    """Return a source for `CodedGradient.steps` whose data a function makes.

    A step has `batch_size` samples, divided among the workers. `fn(draw, generator)`
    makes `draw.count` of them: tensors with as many rows, or lists with as many items,
    in dicts and tuples as you like; another number is refused. The pass of a worker
    calls it for each of its draws and puts the results together. All that is random
    must come from `generator`, or from the global ones of torch, numpy and `random`:
    all are seeded from (seed, epoch, step, index), so any worker makes the same. What
    `fn` makes may depend on the model, which has the same values on all workers; give
    no `num_workers` then, since a process has an old copy.

    Example, the windows of nanoGPT:
        >>> def windows(draw, generator):
        ...     starts = torch.randint(
        ...         len(tokens) - 256, (draw.count,), generator=generator
        ...     )
        ...     x = torch.stack([tokens[i : i + 256] for i in starts])
        ...     y = torch.stack([tokens[i + 1 : i + 257] for i in starts])
        ...     return x, y
        >>> sampler = codedgrad.batches(
        ...     windows, steps=5000, batch_size=12 * codedgrad.size()
        ... )  # doctest: +SKIP

    Args:
        fn: makes samples.
        steps: steps of an epoch.
        batch_size: samples of one step, over all workers together.
        chunk: samples that one call makes; it divides `batch_size`. More are faster,
            but a shard is then made of whole chunks.
        seed: seed of the random numbers.
        **loading: how batches are made ahead, see `LoaderSettings`.

    Raises:
        ConfigError: bad arguments.
    """
    return MadeBatches(fn, steps, batch_size, chunk=chunk, seed=seed, **loading)
