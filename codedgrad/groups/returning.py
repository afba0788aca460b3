"""The part of a training that workers come back into: what users say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.groups.comeback import Comeback
from codedgrad.step import mistakes, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codedgrad.data import Source
    from codedgrad.groups.arrangement import Arrangement
    from codedgrad.job.runtime import Runtime
    from codedgrad.step.subject import Subject


class Returning:
    """What a `CodedGradient` has for workers that come back; see `comeback`."""

    _runtime: Runtime
    _comeback: Comeback
    _arrangement: Arrangement
    _step: int
    _subject: Subject
    if TYPE_CHECKING:  # of the class that is one

        def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
        def _take(self, arrangement: Arrangement) -> None: ...

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._step

    def _begin_comebacks(self) -> None:
        described = self._arrangement.described
        self._comeback = Comeback(self._runtime, self._subject, described)

    def track(self, **things: Any) -> None:
        """Name what a worker that comes back is given beside the model.

            coded.track(optimizer=optimizer, scheduler=schedule, scaler=scaler)

        Args:
            **things: objects with `state_dict()` and `load_state_dict(state)`, whose
                states hold tensors, numbers, texts and containers of these.

        Raises:
            ConfigError: an object has no such methods.
        """
        with start.failing_together(self._runtime, "could not track something"):
            self._comeback.track(things)

    def epochs(self, sampler: Source, count: int) -> Iterator[int]:
        """Yields the epochs from the sampler's on, and sets each on the sampler.

            for epoch in coded.epochs(sampler, 20):
                for shards in coded.steps(sampler):
                    ...

        A sampler that was loaded from a checkpoint begins with its epoch. A process
        that takes the place of a lost worker (`codedgrad run --restarts`,
        docs/faults.md) enters the job here: it waits until the others let it in, takes
        over their state, and goes on in their epoch. Between this loop and the one over
        steps nothing may be collective.

        Args:
            sampler: of the data.
            count: of all epochs, those before the first one included.

        Raises:
            ConfigError: the others do not let this process in; the message says why.
        """
        with start.failing_together(self._runtime, "could not begin its epochs"):
            mistakes.check_source(sampler)
            self._comeback.begin(self, sampler, count)
        try:
            for epoch in range(sampler.epoch, count):
                sampler.set_epoch(epoch)
                self._comeback.begin_epoch()
                yield epoch
            sampler.set_epoch(count)
        finally:
            self._comeback.end()

    @property
    def arrangement(self) -> Arrangement:
        """The present laying out of the model's rows; not for users."""
        return self._arrangement

    def go_on(self, arrangement: Arrangement, step: int) -> None:
        """Go on with this laying out, and with this step; not for users."""
        self._take(arrangement)
        self._step = step
