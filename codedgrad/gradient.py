"""The step: every stage in order, nothing computed here.

    begin -> own passes -> post rows -> wait, with redundant passes past the patience
          -> decoded sum -> p.grad

A straggler leaves this path wherever it notices that the step is decoded.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, WorkerError
from codedgrad.exchange import link
from codedgrad.exchange.engine import EngineExchange
from codedgrad.exchange.settle import LatePass, checkpoint, restore
from codedgrad.faults import Faults, Injector
from codedgrad.groups import exchange as group_exchange
from codedgrad.groups import membership as local_group
from codedgrad.groups import passes as group_step
from codedgrad.job import environment, runtime
from codedgrad.lab.traces import Recorder
from codedgrad.monitor.reporter import Reporter, StepState
from codedgrad.row.layout import Payload
from codedgrad.settings import Approximate, ExchangeSettings, resolve
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.helping import Helping
from codedgrad.step.passes import Passes, Stopwatch
from codedgrad.step.patience import Patience
from codedgrad.step.rng import own_rng

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from codedgrad.codes import Code
    from codedgrad.data import ShardSampler, StepShards
    from codedgrad.monitor.report import RunRecord, StepReport


_NONFINITE = ("raise", "continue", "refuse")


class CodedGradient:
    """The gradient of the whole batch, without waiting for stragglers.

    With c_g samples in micro-batch g and C in the step, `backward` leaves

        p.grad = sum_g (c_g / C) grad_g      (summed in the order of code.tree)

    in every parameter of every worker, the same bits whichever workers were slow
    (codes with `linear=True`: to rounding). Float buffers become the same mean of
    their values after the micro-batches, integer ones (counters) its rounding.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        code: Code | None = None,
        *,
        patience: float = 0.1,
        window: int = 16,
        seed: int = 0,
        bucket_mb: float | None = None,
        overlap: bool = True,
        wire: str = "float32",
        policy: str | Approximate = "exact",
        on_nonfinite: str | None = None,
        faults: Faults | str | None = None,
        log: str | Path | None = None,
        local_group: str | int | None = None,
    ) -> None:
        """Prepare the exchange of `model`'s gradients. Collective.

        Args:
            model: same architecture and parameters on every worker (see
                `broadcast_parameters`).
            code: who computes what; `codes.spread(size())` if None (with `local_group`
                one for the groups). `codes.uncoded(size())` waits for everybody.
            patience: fraction of a pass that an idle worker waits before it helps.
            window: steps that the slowest worker may lag before the others wait.
            seed: of the random numbers inside the passes (dropout, augmentation).
            bucket_mb: size of the pieces that are exchanged and decoded, in MiB; cuts
                move to the end of a tensor near by. None: by the rule of
                `codedgrad.row.cuts`, from the size of the gradient and (from 4 MiB on) what
                a message costs, measured here.
            overlap: send a worker's own row bucket by bucket while its last backward
                runs (see `codedgrad.row.writer`); no bit of the result depends on it.
            wire: type in which gradients travel: "float32" (as they are), or
                "bfloat16" or "float16", half the bytes. Then every addition up to a
                worker's row, and the sum, is rounded to that type, so that the bits
                still depend on nobody's lateness, but on the number of workers (see
                `codedgrad.row.layout`). float16 overflows beyond 65,504 and loses what
                is below 6e-8: scale the loss. Not for codes with `linear=True`.
            policy: "exact": a step ends when the arrivals cover the batch; or
                `codedgrad.approximate(max_error=...)`: or when a learned decoder's
                estimate is good enough.
            on_nonfinite: "raise"; "continue" (counted in `nonfinite`); or, under an
                approximate policy and there the default, "refuse": owners leave such
                rows out and estimate the step from the others.
            faults: slowness to inject, for experiments; else CODEDGRAD_FAULTS.
            log: folder to record this run's own seconds of compute in, one file per
                worker; for `codedgrad plan` (see `codedgrad.lab.traces`).
            local_group: processes that are one worker of the code together, dividing
                its micro-batches: "node", those of each machine, or a number of
                consecutive ranks (see `codedgrad.groups.membership`). `code`, `faults` and
                `log` then number the groups. None: each process is a worker.

        Raises:
            ConfigError: bad arguments, or a code for another number of workers.
            MismatchError: the workers' codes, models or settings differ.
        """
        self._runtime = runtime.current()
        self._guarded_setup(
            model,
            code,
            patience,
            window,
            seed,
            bucket_mb,
            overlap,
            wire,
            policy,
            on_nonfinite,
            faults,
            log,
            local_group,
        )

    def _guarded_setup(self, *arguments: Any) -> None:
        # A worker that cannot start tells the others, who wait in the comparison.
        with self._failing_together("could not start"):
            self._setup(*arguments)

    def _setup(
        self,
        model: torch.nn.Module,
        code: Code | None,
        patience: float,
        window: int,
        seed: int,
        bucket_mb: float | None,
        overlap: bool,
        wire: str,
        policy: str | Approximate,
        on_nonfinite: str | None,
        faults: Faults | str | None,
        log: str | Path | None,
        group_of: str | int | None,
    ) -> None:
        here = self._runtime
        group = self._group = local_group.form(here, group_of, model)
        workers, self._worker = here.size, here.rank
        if group is not None:
            workers, self._worker = group.count, group.index
        self.code = group_step.fitting(code, workers, group)
        self._policy = resolve(policy) if workers > 1 else None
        if group is not None and self._policy is not None:
            raise ConfigError(
                "an approximate policy does not go together with local_group yet; use "
                'policy="exact", or local_group=None'
            )
        if on_nonfinite is None:
            on_nonfinite = "raise" if self._policy is None else "refuse"
        known = ("raise", "continue") if policy == "exact" else _NONFINITE
        if on_nonfinite not in known:
            raise ConfigError(
                f"on_nonfinite must be one of {known} under {policy}, got "
                f"{on_nonfinite!r}"
            )
        self.model = model
        self.faults = _parse_faults(faults, workers)
        self._payload = Payload(
            model.named_parameters(),
            model.named_buffers(),
            workers=workers,
            bucket_mb=bucket_mb,
            wire=wire,
        )
        runtime.check_agreement(
            "code, model or settings",
            [
                ("code", f"{self.code.describe()} [{self.code.fingerprint()[:12]}]"),
                ("seed", str(seed)),
                ("window", str(window)),
                ("bucket_mb", str(bucket_mb)),
                ("wire", wire),
                ("policy", str(self._policy or "exact")),
                ("torch", torch.__version__),
                *self._payload.describe(),
            ],
        )
        link.cut(here, self._payload)
        injector = Injector(self.faults, self._worker) if self.faults else None
        self._passes = Passes(
            model,
            self.code,
            self._payload,
            seed=seed,
            injector=injector,
            finite=on_nonfinite == "raise",
            overlap=overlap,
        )
        self._row: Callable[..., None] = self._passes.row
        self._shared: group_step.GroupPasses | None = None
        if group is not None:
            self._shared = group_step.GroupPasses(
                group, self.code, self._payload, self._passes
            )
            self._row = self._shared.row
        self._overlap = overlap and not self.code.linear
        self._patience = Patience(patience)
        recorder = None
        if log is not None and (group is None or group.leads):
            recorder = Recorder(log, self._worker)
            runtime.before_leaving(recorder.close)
        self._reporter = Reporter(self.code, self._worker, self._patience, recorder)
        self._window = window
        self._step = 0
        self._late = LatePass(window, active=self._policy is not None)
        self._exchange = self._open(0)
        self._rows = [
            (row.after, self._exchange.row_of(self._worker, i), row)
            for i, row in enumerate(self.code.rows[self._worker])
        ]
        self.report: StepReport | None = None
        runtime.barrier()  # nobody sends before all have opened it

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._reporter.record

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._step

    @property
    def nonfinite(self) -> int:
        """Micro-batches with NaN or Inf that were let through on this worker."""
        return self._passes.nonfinite

    def steps(self, sampler: ShardSampler) -> Iterator[StepShards]:
        """One epoch of `sampler`, one item per step."""
        with self._failing_together("could not read its data"):
            yield from sampler.steps(self.code.parts, self.code.shards)

    def backward(self, loss_fn: Callable[..., Tensor], shards: StepShards) -> Tensor:
        """Compute, exchange and decode one step; `p.grad` += the mean gradient.

        Args:
            loss_fn: called with one micro-batch's tensors; returns its mean loss.
            shards: the step's data, from `steps`.

        Returns:
            The mean loss of the whole batch, a scalar without gradient, the same on
            every worker.

        Raises:
            WorkerError: another worker failed; the message says which and why.
            NonFiniteError, ConfigError: this worker's loss function is at fault; the
                others raise WorkerError with this message.
        """
        step = self._step
        clock = Stopwatch()
        with (
            self._failing_together(f"failed in step {step}"),
            self._own_gradients(),
            own_rng(),
        ):
            lag_s = self._exchange.begin(step)
            clock.lap("lag")
            state = StepState(step, forwarded=self._exchange.forwarded(step))
            self._payload.remember_buffers()
            self._required_passes(state, loss_fn, shards)
            clock.lap("compute")
            self._help_until_decoded(state, loss_fn, shards)
            clock.lap("wait")
            self._payload.restore_buffers()
            total, tail = self._exchange.take(step)
            self._passes.check_sum(total, step)
        loss = self._payload.scatter(total, tail)
        self._step += 1
        self.report = self._reporter.end(
            state, clock, self._exchange, lag_s, float(loss)
        )
        return loss

    # ---- stages ----

    def _required_passes(
        self, state: StepState, loss_fn: Callable[..., Tensor], shards: StepShards
    ) -> None:
        rank, step = self._worker, state.step
        if state.forwarded:
            return
        clock = Stopwatch()
        self._passes.begin(step)
        try:
            for item in range(self.code.required[rank]):
                self._compute(
                    item,
                    state,
                    loss_fn,
                    shards,
                    lambda: self._late.needless(self._exchange, step),
                )
        except Abandoned:
            state.abandoned = True
            state.done = self._passes.progress()
        else:
            self._passes.note_duration(clock.total())
        self._late.over(abandoned=state.abandoned)

    def _help_until_decoded(
        self, state: StepState, loss_fn: Callable[..., Tensor], shards: StepShards
    ) -> None:
        rank, step = self._worker, state.step
        work = self.code.work[rank]
        patience_s = self._patience.seconds(self._passes.usual_s)
        if self._shared is not None:
            self._shared.help_until_decoded(
                self._exchange,
                state,
                patience_s,
                loss_fn,
                shards,
                lambda i, over: self._compute(i, state, loss_fn, shards, over),
            )
            return
        helping = Helping(self._exchange, self.code, rank, step)
        # Patience before every item: others may be about to finish the next one.
        while items := helping.next_items(patience_s, self._passes.usual_s):
            item = items[0]
            helping.take([item])
            node = work[item]

            def needless(node: int = node) -> bool:
                return self._over(step) or self._exchange.has(step, node)

            state.helped.append(node)
            clock = Stopwatch()
            try:
                self._compute(item, state, loss_fn, shards, needless)
            except Abandoned:
                state.abandoned = True
            state.help_s += clock.total()
        self._exchange.wait_all(step)

    def _compute(
        self,
        item: int,
        state: StepState,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        needless: Callable[[], bool],
    ) -> None:
        """One item of this worker's work, and the rows that it completes."""
        done = self._exchange.row_buffer()
        rank, step = self._worker, state.step
        node = self.code.work[rank][item]
        rows = [(row_id, row) for after, row_id, row in self._rows if after == item]

        def send(bucket: int) -> None:
            clock = Stopwatch()
            for row_id, _ in rows:
                self._exchange.post_bucket(step, row_id, bucket, done)
            state.send_s += clock.total()

        # A required item is abandoned only once its step is decoded: only then may
        # some buckets of a row have been sent and others never come.
        own = item < self.code.required[rank]
        early = self._overlap and own
        self._row(
            node,
            done.tensor,
            loss_fn,
            shards,
            step,
            needless,
            send if early else None,
            self._late.sender(self._exchange, self.code, step) if own else None,
        )
        if early:
            return
        if self.code.linear:
            state.finished[item] = done.tensor
        clock = Stopwatch()
        for row_id, row in rows:
            message = done
            if self.code.linear:
                message = self._exchange.row_buffer()
                first = state.finished[row.items[0]]
                torch.mul(first, row.coefficients[0], out=message.tensor)
                for i, c in zip(row.items[1:], row.coefficients[1:], strict=True):
                    message.tensor.add_(state.finished[i], alpha=c)
            self._exchange.post(step, row_id, message)
        state.send_s += clock.total()

    def _over(self, step: int) -> bool:
        return self._exchange.done(step)

    # ---- around a step ----

    @contextmanager
    def _failing_together(self, what: str) -> Iterator[None]:
        """An error here ends the job everywhere, with this error as the reason."""
        try:
            yield
        except GeneratorExit:
            raise
        except WorkerError as error:
            self._runtime.fail(str(error))  # news only if the leaders' engine told it
            raise
        except BaseException as error:
            self._runtime.fail(
                f"worker {self._runtime.rank} {what}: {type(error).__name__}: {error}"
            )
            raise

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Set aside what `p.grad` holds (gradient accumulation) during the passes."""
        before = [p.grad for p in self._payload.parameters]
        for p in self._payload.parameters:
            p.grad = None
        try:
            yield
        finally:
            for p, g in zip(self._payload.parameters, before, strict=True):
                p.grad = g

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the next step's number, what the decoder learned.

        Any worker may load any worker's; the decoder's memory of gradients is not in
        it and fills within a step.
        """
        state: dict[str, Any] = {"step": self._step}
        if self._policy is not None:
            state["decoder"] = checkpoint(self._exchange, self.code, self._payload)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Collective; all workers load the same step.

        Raises:
            ConfigError: its decoder was trained with another code or model.
        """
        step = int(state["step"])
        with self._failing_together("could not load a checkpoint"):
            runtime.check_agreement("checkpoint", [("step", str(step))])
            self._exchange.close()
            self._exchange = self._open(step)
            self._step = step
            if self._policy is not None and "decoder" in state:
                restore(self._exchange, self.code, self._payload, state["decoder"])
            runtime.barrier()

    def _open(self, first_step: int) -> EngineExchange:
        settings = ExchangeSettings(window=self._window)
        how: dict[str, Any] = {"first_step": first_step, "approximate": self._policy}
        if self._group is not None:
            return group_exchange.open_exchange(
                self._group, self.code, self._payload, settings, **how
            )
        return EngineExchange(self._runtime, self.code, self._payload, settings, **how)

    def close(self) -> None:
        """End the exchange and take the hooks off the model. Collective."""
        self._exchange.close()
        self._passes.close()
        self._reporter.close()


def _parse_faults(faults: Faults | str | None, workers: int) -> Faults | None:
    if faults is None:
        faults = environment.faults_text()
    if isinstance(faults, str):
        return Faults.parse(faults, workers) if faults.strip() else None
    return faults
