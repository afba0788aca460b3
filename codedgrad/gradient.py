"""Face 1: `CodedGradient`, the stages of a step in order; nothing is computed here.

    begin -> own passes -> post rows -> wait, with redundant passes past the patience
          -> decoded sum -> p.grad

A straggler leaves this path wherever it notices that the step is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from codedgrad.data.seeding import own_rng
from codedgrad.groups.arrangement import Arrangement, plan_of
from codedgrad.groups.returning import Returning
from codedgrad.job import agreement, runtime
from codedgrad.job.settings import Keywords, Settings, combine
from codedgrad.step import live, mistakes, start
from codedgrad.step.account import Account
from codedgrad.step.context import StepContext
from codedgrad.step.pieces import own_is_whole
from codedgrad.step.state import StepState, Stopwatch
from codedgrad.step.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch.nn import Module
    from typing_extensions import Self, Unpack

    from codedgrad.codes import Code
    from codedgrad.data import Source, StepShards
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport


class CodedGradient(Returning):
    """The gradient of the whole batch, without waiting for stragglers.

    With c_g samples in micro-batch g and C in the step, `backward` leaves

        p.grad = sum_g (c_g / C) grad_g      (summed in the order of code.tree)

    in every parameter, the same bits on every worker (with `same_bits=True` whoever was
    late, but for codes with `linear=True`). Float buffers become the same mean of their
    values after the passes, integer ones (counters) its rounding.

    Attributes:
        model: the model given.
        code: who computes what.
        faults: slowness that is injected, or None.
        report: what happened in the last step; None before the first.
        metrics: what the loss function returned beside the loss, by name, for the last
            step's whole batch, the same on every worker.
    """

    def __init__(
        self,
        model: Module,
        code: Code | None = None,
        *,
        settings: Settings | None = None,
        also: Sequence[Module] = (),
        **keywords: Unpack[Keywords],
    ) -> None:
        """Prepare the exchange of `model`'s gradients. Collective.

        Args:
            model: the same values on every worker, see `broadcast_parameters`.
            code: who computes what. None means `codes.spread` (over groups with
                `local_group`) with `codes.usual_pieces(size())` micro-batches, or four
                with `same_bits`; `codes.uncoded(size())` waits for everybody.
            settings: all settings in one object; None means the defaults.
            also: other modules that the loss function calls. What passes change of
                them travels with this model's steps, and so do the gradients of those
                of their parameters that require one.
            **keywords: single settings by name, which win over `settings`: the fields
                of its parts, and `policy`: "exact" or `approximate(...)`.

        Raises:
            ConfigError: bad arguments, or a code for another number of workers.
            MismatchError: the workers' codes, models or settings differ.
            TypeError: there is no such keyword.
        """
        self._runtime = runtime.current()
        self._settings = combine(settings, keywords, CodedGradient)
        # A worker that cannot start tells the others, who wait in the comparison.
        with start.failing_together(self._runtime, "could not start"):
            mistakes.check_model(model, code)
            self._form(model, code, also)
            start.when_all_have_opened(self._runtime, self._exchange)

    def _form(self, model: Module, code: Code | None, also: Sequence[Module]) -> None:
        """Find out who this worker is, lay out its rows and open the exchange."""
        self.model, self._subject = model, Subject(model, also)
        plan = plan_of(self._runtime, self._settings, self._subject.roots, code)
        self.faults, self._policy = plan.faults, plan.policy
        self._take(Arrangement(plan, self._subject, first_step=0))
        self._reporter = start.reporter_into(plan.log, plan.seat.worker)
        self._account = Account(plan.code, plan.patience, self._reporter)
        self._step, self._weighed = 0, False  # did a repeated step weigh?
        self._begin_comebacks()
        self.report: StepReport | None = None
        self.metrics: dict[str, float] = {}
        live.enter(self._subject)

    def _take(self, arrangement: Arrangement) -> None:
        """Go on with this laying out."""
        self._arrangement, self._passes = arrangement, arrangement.passes
        self.code = arrangement.code
        self._payload, self._exchange = arrangement.payload, arrangement.exchange
        arrangement.end_with(self)

    # ---- a step ----

    def steps(self, sampler: Source) -> Iterator[StepShards]:
        """Yields the steps of one epoch of `sampler`."""
        with start.failing_together(self._runtime, "could not read its data"):
            mistakes.check_source(sampler)
            whole, own = own_is_whole(self._settings.run), self._arrangement.own_spans
            code = self.code
            steps = sampler.steps(code.parts, code.shards, whole=whole, own=own)
            yield from self._comeback.between(self, sampler, steps)

    def backward(self, loss_fn: Callable[..., Any], shards: StepShards) -> Tensor:
        """Compute, exchange and decode one step; add the mean gradient to `p.grad`.

        Args:
            loss_fn: called with the tensors of a shard, or of a piece of one; returns
                its mean loss, or (loss, weight) where samples are not what it is a mean
                over: then p.grad = sum_g w_g grad_g / sum_g w_g. A dict of up to 16
                metrics may follow either: floats are means like the loss, and come
                back in `metrics` as sum_g w_g x_g / sum_g w_g; integers are counts,
                and come back as sum_g x_g.
            shards: the step's data, from `steps`.

        Returns:
            The mean loss of the batch, without gradient, the same on every worker.

        Raises:
            MismatchError: parameters or data differ, only some passes gave a weight,
                or some gave other metrics; nothing has changed.
            WorkerError: another worker failed; the message says which and why.
            NonFiniteError, ConfigError: the loss function is at fault on this worker.
        """
        clock = Stopwatch()
        with start.failing_together(self._runtime, f"failed in step {self._step}"):
            mistakes.check_backward(self._subject, loss_fn, shards)
            if not self._arrangement.fits():
                self._take(self._arrangement.again(self._step))
            while (sums := self._compute(loss_fn, shards, clock)) is None:
                self._arrangement.learn(self._step, weighed=self._weighed)
                self._take(self._arrangement.again(self._step))
        state, total, tail = sums
        loss = self._payload.scatter(total, tail)
        shards.note_used()
        self.report = self._account.end(state, self._exchange, float(loss))
        return loss

    def _compute(
        self, loss_fn: Callable[..., Any], shards: StepShards, clock: Stopwatch
    ) -> tuple[StepState, Tensor, NDArray[Any]] | None:
        """Returns the decoded sum of a step, and its tail.

        None: passes changed what does not travel yet, so it is to be computed again.
        """
        step, exchange, payload = self._step, self._exchange, self._payload
        with start.own_gradients(payload), own_rng():
            self._arrangement.check.begin(step, shards, loss_fn)
            lag_s = exchange.begin(step)
            state = StepState(step, exchange.forwarded(step), clock, lag_s)
            context = StepContext(exchange, loss_fn, shards, state)
            clock.lap("lag")
            payload.buffers.remember()
            self._arrangement.watch.begin(step, loss_fn)
            with self._runtime.computing():
                self._arrangement.own.compute(context)
                clock.lap("compute")
                self._arrangement.help.until_decoded(context)
            clock.lap("wait")
            decoded = exchange.take(step)
            if payload.moved(decoded[1]):
                self._weighed = payload.weights.measure(decoded[1])
                payload.buffers.restore()
                return None
            self._step += 1  # a step that is refused below is over, too
            with payload.buffers.restored_on_error():
                total, tail = self._arrangement.check.verified(decoded)
                self.metrics = self._arrangement.metrics_of(tail, step)
                self._passes.nonfinite.check_sum(total, tail, step)
        return state, total, tail

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._reporter.record

    @property
    def nonfinite(self) -> int:
        """Number of micro-batches with NaN or Inf that were let through here."""
        return self._passes.nonfinite.count

    # ---- checkpoints and the end ----

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: the next step, what the decoder learned.

        Any worker may load any worker's; the decoder's memory of gradients is not in
        it and fills within a step.
        """
        return {"step": self._step, **self._arrangement.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Collective; all workers load the same step.

        Raises:
            ConfigError: its decoder was trained with another code or model.
        """
        step = int(state["step"])
        with start.failing_together(self._runtime, "could not load a checkpoint"):
            live.check_open(self._subject)
            agreement.check_agreement("checkpoint", [("step", str(step))])
            self._take(self._arrangement.again(step, state))
            self._step = step

    def close(self) -> None:
        """End the exchange and take the hooks off the model. Collective; once will do.

        Raises:
            MismatchError: the workers have made different numbers of steps.
        """
        if live.leave(self._subject):
            self._arrangement.close()
            self._reporter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Close it; after an error take the hooks off and wait for nobody."""
        if kind is None:
            self.close()
        elif live.leave(self._subject):
            self._passes.close()
