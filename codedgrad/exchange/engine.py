"""The exchange over the C++ engine, in tensors and codes."""

from __future__ import annotations

import logging
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.exchange.base import CLOSING, Arrival, RowBuffer, Settled
from codedgrad.exchange.memory import memory_of
from codedgrad.exchange.plan import check_wire, plan_of, required_rows, row_number
from codedgrad.exchange.settle import engine_settings
from codedgrad.job import agreement
from codedgrad.job.progress import Deadlock, uneven
from codedgrad.job.waiting import Waiting, give_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.settings import Approximate, ExchangeSettings
    from codedgrad.row.layout import Layout

log = logging.getLogger("codedgrad")

DEPUTY_S = 0.01  # the scheduler of a busy machine takes a thread off for some ms
_said: set[str] = set()  # why there are no deputies, each reason once
_NEEDS_ALL = (
    "an exchange is open, or to be opened, that needs all workers; those with "
    "same_bits=True and back-ups do not (docs/faults.md)"
)
_ALL = -1  # all buckets
_FAILED = -1  # in place of the steps made: the last one has ended with an error
_EQUALLY = (
    "Run the same number of steps on every worker: with samplers of the same length, "
    "and without leaving the loop on some of them only"
)
_NEVER = 2**31 - 1  # so often no rows are needed again
_COUNTERS = (
    "rows_useful",
    "rows_redundant",
    "rows_late",
    "slices_decoded",
    "slices_on_device",
    "bytes_sent",
    "decode_s",
    "rows_refused",
    "slices_settled",
    "slices_deputised",
    "messages_sent",
    "notes_sent",
    "bytes_copied",
    "choose_s",
    "learn_s",
    "slices_biased",
)
_counted = attrgetter(*_COUNTERS)


class EngineExchange:
    """Rows out, the decoded sum in: `base.Exchange` over one session of the engine.

    Attributes:
        noun: what messages call a step.
    """

    noun = "step"

    def __init__(
        self,
        runtime: Runtime,
        code: Code,
        layout: Layout,
        settings: ExchangeSettings,
        *,
        first_step: int = 0,
        approximate: Approximate | None = None,
        deputies: bool | None = None,
    ) -> None:
        """Open a session of the engine. All workers do so in the same order.

        Args:
            runtime: of the job; its engine drives the session.
            code: who sends which rows.
            layout: where things lie in a row.
            settings: of them the window, in steps.
            first_step: the number of the first step.
            approximate: when an owner may settle for an estimate; None: never.
            deputies: whether another worker may decode the slice of an owner that is
                silent, where no bit can depend on it (see docs/faults.md). Where it
                may not, the log says so once, but for None.

        Raises:
            ConfigError: the engine refuses the settings (window, buckets, rows), or
                nothing can be estimated of this code's rows.
        """
        self._runtime, self._code = runtime, code
        self._starts = layout.bucket_starts
        self._count = layout.bucket_starts[-1]
        self._required = required_rows(code)
        own = self._required[runtime.rank : runtime.rank + 1]
        self._last_row = own[0][-1] if own and own[0] else -1
        check_wire(code, layout.wire, layout.narrow_buckets)
        plan = plan_of(code)
        estimates = None
        if approximate is not None:
            estimates = engine_settings(approximate, code, layout)
        self._session: dict[str, Any] = {
            "plan": plan,
            "bucket_starts": layout.bucket_starts,
            "dtype": str(layout.dtype).removeprefix("torch."),
            "window": settings.window,
            "wire": layout.wire,
            "narrow_buckets": layout.narrow_buckets,
            "approximate": estimates,
        }
        self._layout = layout
        self._deputies = deputies
        self._begun = first_step - 1  # the last step that was begun
        self._open(first_step)
        self._made = runtime.track(first_step)
        self._deadlock = Deadlock(runtime, partial(give_up, runtime), self._made)

    def _open(self, first_step: int) -> None:
        """Open the session of the engine, whose first step is `first_step`."""
        from codedgrad.job import _engine

        plan, layout = self._session["plan"], self._layout
        plain = layout.narrow_buckets == 0 and self._session["approximate"] is None
        self._memory = memory_of(
            self._runtime,
            layout,
            summable=plain and plan.most_inputs <= _engine.MOST_DEVICE_INPUTS,
        )
        self._deputised = self._may_deputise()
        self.outlives = self._deputised and self._computable_by_all()
        if not self.outlives and (lost := self.lost()):
            raise ConfigError(f"worker(s) {lost} are lost; {_NEEDS_ALL}")
        try:
            self._core = _engine.Exchange(
                self._runtime.engine,
                _engine.SessionSettings(
                    **self._session,
                    first_step=first_step,
                    memory=self._memory.kind,
                    deputy_s=DEPUTY_S if self._deputised else 0.0,
                    needs_all="" if self.outlives else _NEEDS_ALL,
                ),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._memory.opened(self._core)

    def _computable_by_all(self) -> bool:
        """Returns whether each worker can compute and send any micro-batch."""
        code = self._code
        return all(map(int.__lt__, code.required, map(len, code.work)))

    def _may_deputise(self) -> bool:
        """Returns whether slices may be decoded by others than their owners.

        Never where a bit could depend on who decodes: the workers would drift apart.
        """
        if self._runtime.size == 1 or self._deputies is None:
            return False
        reason = ""
        if self._session["approximate"] is not None:
            reason = "estimates"
        elif self._code.linear:
            reason = f"the code {self._code.name}, which adds up to rounding"
        elif not self._deputies:
            reason = "same_bits=False, local groups and DistributedOptimizer"
        elif self._layout.narrow_buckets > 0:
            reason = f"wire={self._layout.wire!r}"
        elif self._memory.kind != "host":
            reason = "rows that a device sums"
        if reason and reason not in _said:
            _said.add(reason)
            log.info(
                "a worker whose process stands still makes the others wait: with %s "
                "nobody decodes in its place (docs/faults.md)",
                reason,
            )
        return not reason

    # ---- a step, in order ----

    def row_of(self, worker: int, row: int) -> int:
        """See `base.Exchange`."""
        return row_number(self._code, worker, row)

    def row_buffer(self) -> RowBuffer:
        """See `base.Exchange`."""
        return self._memory.row(self._core)

    def begin(self, step: int) -> float:
        """See `base.Exchange`."""
        if self._runtime.outside:
            raise ConfigError(
                f"it cannot begin {self.noun} {step}: {self._runtime.outside}"
            )
        if step == self._begun and self._runtime.size == 1:
            self._begin_again(step)
        self._begun = step
        occasion, waiting = f"to begin {self.noun} {step}", None
        self._runtime.losses.look(self._runtime, occasion)
        while True:
            self._deadlock.look(occasion, step)
            ok, behind = self._core.begin(step, 0.0 if waiting is None else 1.0)
            if ok:
                return 0.0 if waiting is None else waiting.seconds()
            if waiting is None:
                waiting = Waiting(self._runtime, occasion)
            else:
                waiting.tick(behind)

    def _begin_again(self, step: int) -> None:
        """Drop what a step that an exception has ended has sent so far.

        Only a worker that is alone comes here; where there are others, such an
        exception is the end of the job.
        """
        self._memory.close()
        self._core.close()
        self._open(step)

    def forwarded(self, step: int) -> bool:
        """See `base.Exchange`."""
        return self.done(step)

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """See `base.Exchange`."""
        event = self._memory.copied(data, 0, self._count)
        self._core.post(
            step, row, data.buffer, _ALL, event, waits=row == self._last_row
        )

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """See `base.Exchange`."""
        begin, end = self._starts[bucket : bucket + 2]
        event = self._memory.copied(data, begin, end)
        # Where it is the last of all, the caller waits for the step next.
        last = row == self._last_row and end == self._count
        self._core.post(step, row, data.buffer, bucket, event, waits=last)

    def lost(self) -> list[int]:
        """See `base.Exchange`."""
        return list(self._runtime.engine.lost())

    def done(self, step: int) -> bool:
        """See `base.Exchange`."""
        done: bool = self._core.done(step)
        return done

    def past_half(self, step: int) -> bool:
        """See `base.Exchange`."""
        return bool(self._core.past_half(step))

    def has(self, step: int, row: int) -> bool:
        """See `base.Exchange`."""
        return bool(self._core.has(step, row))

    def begun(self, step: int, row: int) -> bool:
        """See `base.Exchange`."""
        return bool(self._core.begun(step, row))

    def wait(self, step: int, timeout_s: float) -> bool:
        """See `base.Exchange`."""
        return self._wait(step, timeout_s, _NEVER)

    def _wait(self, step: int, timeout_s: float, seen: int) -> bool:
        """Waits until `step` is decoded, or rows of it are needed once more."""
        return bool(self._core.wait(step, timeout_s, seen))

    def wait_all(
        self, step: int, help_out: Callable[[int], None] | None = None
    ) -> None:
        """See `base.Exchange`."""
        occasion, seen = f"in {self.noun} {step}", _NEVER
        waiting = Waiting(self._runtime, occasion, quiet_s=5.0)
        if help_out is not None and self._deputised:
            seen = 0
        while not self._wait(step, 1.0, seen):
            if seen != _NEVER and (needs := self._core.needs(step)) > seen:
                assert help_out is not None
                seen = needs
                help_out(needs)
            self._deadlock.look(occasion, step)
            waiting.tick(self._blockers(step))

    def take(self, step: int) -> tuple[Tensor, NDArray[Any]]:
        """See `base.Exchange`."""
        result = self._memory.result(self._core.take(step))
        self._made.steps = step + 1
        return result

    def _blockers(self, step: int) -> list[int]:
        """Returns workers whose own rows are missing; else owners whose slices are."""
        lost = self.lost()
        late = [
            worker
            for worker, required in enumerate(self._required)
            if worker not in lost and not all(self.has(step, row) for row in required)
        ]
        return late or [w for w in self._core.missing(step) if w not in lost]

    # ---- reports and checkpoints ----

    def required_rows(self) -> list[list[int]]:
        """See `base.Exchange`."""
        return self._required

    def arrivals(self) -> Iterator[Arrival]:
        """See `base.Exchange`."""
        for a in self._core.drain_arrivals():
            yield Arrival(a.step, a.source, a.row, a.kind, a.time_s)

    def settled(self) -> list[Settled]:
        """See `base.Exchange`."""
        return [
            Settled(*(getattr(s, name) for name in Settled._fields))
            for s in self._core.drain_settled()
        ]

    def decoder_states(self) -> list[list[float]]:
        """See `base.Exchange`."""
        return [list(s) for s in self._core.decoder_states()]

    def restore_decoders(self, state: list[float]) -> None:
        """See `base.Exchange`."""
        try:
            self._core.restore_decoders(state)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def counters(self) -> dict[str, float]:
        """See `base.Exchange`."""
        return dict(zip(_COUNTERS, _counted(self._core.counters()), strict=True))

    def close(self, why: str = CLOSING) -> None:
        """See `base.Exchange`."""
        self._memory.close()
        job, made = self._runtime, self._made.steps
        mine = made if self._begun < made else _FAILED
        every = [int(blob) for blob in job.gather(str(mine).encode(), why)]
        problem = uneven(job.unit, [{"": steps} for steps in every])
        if problem and _FAILED not in every:
            raise agreement.everywhere(job, f"{problem}. {_EQUALLY}")
        self._core.close()
        job.gather(b"", why)
        job.progress.forget(self._made)
