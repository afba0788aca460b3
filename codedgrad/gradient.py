"""Face 1: `CodedGradient`, the stages of a step in order; nothing is computed here.

    begin -> own passes -> post rows -> wait, with redundant passes past the patience
          -> decoded sum -> p.grad

A straggler leaves this path wherever it notices that the step is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.exchange import settle
from codedgrad.faults import Injector
from codedgrad.groups.code import fitting
from codedgrad.groups.seat import Opening, Pacing, take_seat
from codedgrad.job import runtime
from codedgrad.row.payload import Payload
from codedgrad.settings import Keywords, Settings, combine
from codedgrad.step import start
from codedgrad.step.account import Account
from codedgrad.step.check import ValueCheck
from codedgrad.step.context import StepContext
from codedgrad.step.items import WorkList
from codedgrad.step.late import LatePass
from codedgrad.step.passes import Passes, PassSettings
from codedgrad.step.patience import Patience
from codedgrad.step.rng import own_rng
from codedgrad.step.state import StepState, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Unpack

    from codedgrad.codes import Code
    from codedgrad.data import ShardSampler, StepShards
    from codedgrad.exchange.base import Exchange
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport


class CodedGradient:
    """The gradient of the whole batch, without waiting for stragglers.

    With c_g samples in micro-batch g and C in the step, `backward` leaves

        p.grad = sum_g (c_g / C) grad_g      (summed in the order of code.tree)

    in every parameter of every worker, the same bits whichever workers were slow
    (to rounding for codes with `linear=True`). Float buffers become the same mean of
    their values after the micro-batches, integer ones (counters) its rounding.

    Attributes:
        model: the model given.
        code: who computes what.
        faults: slowness that is injected, or None.
        report: what happened in the last step; None before the first.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        code: Code | None = None,
        *,
        settings: Settings | None = None,
        **keywords: Unpack[Keywords],
    ) -> None:
        """Prepare the exchange of `model`'s gradients. Collective.

        Args:
            model: the same values on every worker, see `broadcast_parameters`.
            code: who computes what. None means `codes.spread(size())`, over groups with
                `local_group`; `codes.uncoded(size())` waits for everybody.
            settings: all settings in one object; None means the defaults.
            **keywords: single settings by name, which win over `settings`: `wire`,
                `bucket_mb`, `overlap`, `window` (see `ExchangeSettings`); `patience`
                (see `HelpSettings`); `policy`: "exact" or `approximate(...)`; `seed`,
                `on_nonfinite`, `faults`, `log`, `local_group` (see `RunSettings`).

        Raises:
            ConfigError: bad arguments, or a code for another number of workers.
            MismatchError: the workers' codes, models or settings differ.
            TypeError: there is no such keyword.
        """
        self._runtime = runtime.current()
        self._settings = combine(settings, keywords)
        # A worker that cannot start tells the others, who wait in the comparison.
        with start.failing_together(self._runtime, "could not start"):
            self._form(model, code)
            self._lay_out()
            self._prepare()
            runtime.barrier()  # nobody sends before all have opened their exchange

    # ---- stages of the start ----

    def _form(self, model: torch.nn.Module, code: Code | None) -> None:
        """Find out who this worker is, and what it is to compute."""
        run = self._settings.run
        seat = self._seat = take_seat(self._runtime, run.local_group, model)
        self.model = model
        self.code = fitting(code, seat.workers, seat.group)
        self._policy = seat.policy(self._settings.policy)
        self.faults = start.faults_of(run.faults, seat.workers)

    def _lay_out(self) -> None:
        """Lay out a row, and compare it and the settings over all workers."""
        settings, model = self._settings, self.model
        self._payload = Payload(
            model.named_parameters(),
            model.named_buffers(),
            workers=self.code.workers,
            settings=settings.exchange,
        )
        seed, policy = str(settings.run.seed), str(self._policy or "exact")
        others = [("seed", seed), ("policy", policy)]
        start.agree(self._payload, self.code, settings.exchange, others)
        start.cut(self._runtime, self._payload)
        self._check = ValueCheck.of(self._runtime, self._payload, model, self._policy)

    def _prepare(self) -> None:
        """Make what a step goes through, and open the exchange."""
        settings, code, seat = self._settings, self.code, self._seat
        passing = PassSettings(
            seed=settings.run.seed,
            finite=settings.on_nonfinite() == "raise",
            overlap=settings.exchange.overlap,
        )
        injector = Injector(self.faults, seat.worker) if self.faults else None
        self._passes = Passes(self.model, code, self._payload, passing, injector)
        self._exchange = self._open(first_step=0)
        patience = Patience(settings.help.patience)
        late = LatePass(code, settings.exchange.window, active=self._policy is not None)
        work = WorkList(code, seat.worker, self._exchange, overlap=passing.overlap)
        self._own, self._help = seat.stages(
            self._passes, self._payload, work, Pacing(late, patience)
        )
        log = settings.run.log if seat.leads else None
        self._reporter = start.reporter_into(log, seat.worker)
        self._account = Account(code, patience, self._reporter)
        self._step = 0
        self.report: StepReport | None = None

    def _open(self, first_step: int) -> Exchange:
        opening = Opening(first_step, self._policy)
        settings, layout = self._settings.exchange, self._payload.layout
        return self._seat.open_exchange(self.code, layout, settings, opening)

    # ---- a step ----

    def steps(self, sampler: ShardSampler) -> Iterator[StepShards]:
        """Yields the steps of one epoch of `sampler`."""
        with start.failing_together(self._runtime, "could not read its data"):
            yield from sampler.steps(self.code.parts, self.code.shards)

    def backward(self, loss_fn: Callable[..., Tensor], shards: StepShards) -> Tensor:
        """Compute, exchange and decode one step; add the mean gradient to `p.grad`.

        Args:
            loss_fn: called with one micro-batch's tensors; returns its mean loss.
            shards: the step's data, from `steps`.

        Returns:
            The mean loss of the batch, without gradient, the same on every worker.

        Raises:
            MismatchError: the workers' parameters or data differ; nothing has changed.
            WorkerError: another worker failed; the message says which and why.
            NonFiniteError, ConfigError: the loss function is at fault on this worker.
        """
        step, exchange, payload = self._step, self._exchange, self._payload
        clock = Stopwatch()
        with (
            start.failing_together(self._runtime, f"failed in step {step}"),
            start.own_gradients(payload),
            own_rng(),
        ):
            self._check.begin(step, shards)
            lag_s = exchange.begin(step)
            state = StepState(step, exchange.forwarded(step), clock, lag_s)
            context = StepContext(exchange, loss_fn, shards, state)
            clock.lap("lag")
            payload.buffers.remember()
            self._own.compute(context)
            clock.lap("compute")
            self._help.until_decoded(context)
            clock.lap("wait")
            payload.buffers.restore()
            self._step += 1
            total, tail = self._check.verified(exchange.take(step))
            self._passes.check_sum(total, step)
        loss = payload.scatter(total, tail)
        self.report = self._account.end(state, exchange, float(loss))
        return loss

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._reporter.record

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._step

    @property
    def nonfinite(self) -> int:
        """Number of micro-batches with NaN or Inf that were let through here."""
        return self._passes.nonfinite

    # ---- checkpoints and the end ----

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: the next step, what the decoder learned.

        Any worker may load any worker's; the decoder's memory of gradients is not in
        it and fills within a step.
        """
        state: dict[str, Any] = {"step": self._step}
        if self._policy is not None:
            layout = self._payload.layout
            state["decoder"] = settle.checkpoint(self._exchange, self.code, layout)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Collective; all workers load the same step.

        Raises:
            ConfigError: its decoder was trained with another code or model.
        """
        step = int(state["step"])
        with start.failing_together(self._runtime, "could not load a checkpoint"):
            self._check.load(step)
            self._exchange.close()
            self._exchange = self._open(step)
            self._step = step
            if self._policy is not None and "decoder" in state:
                layout, saved = self._payload.layout, state["decoder"]
                settle.restore(self._exchange, self.code, layout, saved)
            runtime.barrier()

    def close(self) -> None:
        """End the exchange and take the hooks off the model. Collective."""
        self._exchange.close()
        self._passes.close()
        self._reporter.close()
