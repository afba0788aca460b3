"""The drop-in: what happens around the forwards and backwards of an unmodified loop.

    first forward       the values of the buffers are noted
    every forward       random numbers from (seed, step, forward in the step, shard)
    last backward       begins the row, buckets are sent while it runs
      its end           waits until the exchange is decoded and sets p.grad and buffers
    synchronize()       exchanges the passes that are left over
    optimizer.step()    does, too, and ends the step; random numbers are again the
                        user's own

An exchange replaces what `p.grad` holds by its mean over all workers. It contains what
earlier exchanges of the step left there, which is the same on all workers and therefore
equal to its mean. So any number of exchanges may make a step, several losses add up,
and `zero_grad` may be called anywhere, as in a loop on one worker. `p.grad` is never
set aside: at all times it holds what the user would see without codedgrad.
"""

from __future__ import annotations

import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.data.seeding import OuterNumbers
from codedgrad.errors import ConfigError
from codedgrad.job import collectives
from codedgrad.job.broadcast import broadcast_optimizer_state, broadcast_parameters
from codedgrad.step import closures, live, start
from codedgrad.step.ahead import BatchesAhead
from codedgrad.step.attach import Weakly, before_forward, call_all, is_exported
from codedgrad.step.backwards import Backwards, inside_backward
from codedgrad.step.counts import Counts
from codedgrad.step.mean import GradientMean, check_outside
from codedgrad.step.needless import NeedlessForwards
from codedgrad.step.plain import PlainState, no_function
from codedgrad.step.plan import DropInPlan, Progress, Trained, no_join
from codedgrad.step.rng import Seeds
from codedgrad.step.slowly import SlowLoop
from codedgrad.step.sparse import SparseGradients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from codedgrad.job.runtime import Runtime
    from codedgrad.monitor.record import RunRecord


_LOOKED_AT = 3  # exchanges in which state outside of buffers is looked for


class DropIn:
    """What is attached to an optimizer and its model. The optimizer keeps it alive."""

    def __init__(self, job: Runtime, trained: Trained, plan: DropInPlan) -> None:
        """Open the exchange and attach the hooks. Collective."""
        self._job = job
        self._passes = plan.passes
        self._seeds = Seeds(plan.settings.run.seed)
        self._outer = OuterNumbers()
        self._counts = Counts()
        faults = start.faults_of(plan.settings.run.faults, job.size)
        self._slow = SlowLoop(faults, job.rank)
        self._passed = 0  # passes that have ended since the last exchange
        self._passes_made = 0
        self._failed = False  # a pass since the last exchange has ended by an error
        self._remembered = False  # the buffers, since the last exchange
        self._small = False  # a batch of this exchange is one that was not needed
        self._exchanged = False  # something, since the last optimizer.step()
        self._mean = GradientMean(job, trained, plan)
        self._known = set(map(id, self.parameters))
        self._names = {id(p): name for name, p in trained.named}
        self._multiply = plan.multiply
        self._uneven = no_join(trained, plan)
        self._sparse_again = not plan.sparse_as_dense
        self._short = plan.catch_up and plan.estimates(job.size) is not None
        self._plain = PlainState()
        self._synchronize_in_step = True
        self._attach(trained)

    def _attach(self, trained: Trained) -> None:
        """Attach all hooks; they are taken off when this object is gone."""
        optimizer, model = trained.optimizer, trained.model
        live.enter_optimizer(optimizer, self.parameters)
        self._optimizer = weakref.ref(optimizer)
        self._sparse = SparseGradients(self.parameters, back=self._sparse_again)
        self._backwards = Backwards(self.parameters, self)
        # Its hooks come after those above, which begin the row that it writes.
        writer = self._mean.attach()
        handles: list[Any] = [
            # These belong to the optimizer, which keeps this object alive by them.
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *self._counts.attach(optimizer, self._mean),
        ]
        if model is not None:
            handles += self._model_hooks(model)
        if self._multiply != 1:
            factor = self._multiply
            handles += [
                p.register_hook(lambda g: g * factor)
                for p in self.parameters
                if p.requires_grad
            ]
        self._catches_up: NeedlessForwards | None = None
        if model is not None and self._short:
            self._catches_up = NeedlessForwards(model, self.parameters, self)
            handles.append(self._catches_up)
        handles.append(self._sparse)
        calls = [h.remove for h in handles] + [self._backwards.remove, writer.close]
        calls.append(self._outer.put_back)
        self._detach = weakref.finalize(self, call_all, calls)
        self._detach.atexit = False
        self._ahead: BatchesAhead | None = None
        if trained.sampler is not None:
            self._ahead = BatchesAhead(trained.sampler, model, self)

    def _model_hooks(self, model: torch.nn.Module) -> list[Any]:
        """Attach the hooks that note buffers and make random numbers."""
        ours = set(map(id, self._mean.payload.layout.buffers))
        changing = [
            before_forward(module, Weakly(self, DropIn._before_change))
            for module in model.modules()
            if module is not model and ours & set(map(id, module._buffers.values()))
        ]
        # Where the model is compiled, this is called as it is, between two graphs.
        acts: Any = torch.compiler.disable(DropIn._before_forward)
        return [before_forward(model, Weakly(self, acts)), *changing]

    def close(self, *, alone: bool = False) -> None:
        """Take the hooks off and close the exchange. Collective, unless `alone`."""
        self._detach()
        live.leave_optimizer(self._optimizer())
        if self._ahead is not None:
            self._ahead.remove()
        if alone:
            self._mean.leave()
        else:
            self._mean.close()

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._mean.journal.record

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters whose gradients are exchanged."""
        return self._mean.payload.layout.parameters

    def _failing_together(self) -> Any:
        doing = f"failed in exchange {self._mean.number}"
        return start.failing_together(self._job, doing)

    # ---- the forward passes ----

    def _before_change(self, module: torch.nn.Module, _inputs: Any) -> None:
        """The hook of every module with buffers, which may change now."""
        if torch.compiler.is_compiling():
            return  # in compiled code, only the hook of the whole model acts
        if module.training and not self._remembered and not inside_backward():
            self._remember()

    def _before_forward(self, module: torch.nn.Module, inputs: Any) -> None:
        """The hook of the whole model."""
        if is_exported(module):
            return
        if not module.training:  # changes nothing, but the user may have loaded values
            if torch.is_grad_enabled() and not (self._remembered or inside_backward()):
                self._mean.payload.buffers.remember()
            return
        if inside_backward():
            self._seeds.repeat()
            return
        self._backwards.look()
        if not self._remembered:
            self._remember()
        if not torch.is_grad_enabled():
            return
        self._mean.journal.begins(self._mean.number)
        if self._ahead is not None:
            self._small |= self._ahead.is_small(inputs)
        counts = self._counts
        if counts.forwards == 0 and self._mean.number < _LOOKED_AT:
            self._plain.begin(no_function, list(module.modules()))
        self._slow.pass_begins(self._mean.number)
        self._outer.keep()
        self._seeds.next(counts.steps, self._mean.part + (counts.forwards << 32))
        counts.forwards += 1

    def _remember(self) -> None:
        self._mean.payload.buffers.remember()
        self._remembered = True

    # ---- the backward passes; see `BackwardListener` ----

    def backward_begins(self, first: Tensor) -> None:
        """The first gradient of a pass has come."""
        self._slow.boundary()
        self._mean.journal.begins(self._mean.number)
        self._plain.end(finished=True)
        if self._passed == self._passes - 1:
            progress = Progress(self._passes, self._counts.steps)
            with self._failing_together():
                self._sparse.make_dense()
                self._mean.begin(own=not self._small, progress=progress, first=first)

    def backward_ended(self) -> None:
        """All gradients of a pass have come."""
        self._slow.pass_ends()
        self._passed += 1
        self._passes_made += 1
        if self._passed == self._passes:
            self._complete()

    def backward_failed(self) -> None:
        """A pass has ended with an exception, which the user has caught.

        As without codedgrad, the gradients that have come are in `p.grad`, and it is no
        pass. If a part of the row is sent already, that cannot be undone.
        """
        self._failed = True
        if not self._mean.sent:
            self._mean.abort()
            return
        with self._failing_together():
            raise ConfigError(
                "a backward pass ended with an error, which was caught, after a part "
                "of its gradient had been sent to the other workers; use overlap=False "
                "where a backward may fail"
            )

    def _complete(self) -> None:
        """End the exchange that has begun."""
        with self._failing_together():
            self._mean.complete()
            self._sparse.put_back()
            optimizer: Any = self._optimizer()
            check_outside(optimizer, self._known, self._names)
        if optimizer is not None:
            optimizer.report = self._mean.journal.report
        self._passed = 0
        self._small = self._failed = self._remembered = False
        self._exchanged = True

    # ---- the step of the optimizer ----

    def _before_step(
        self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The hook before `optimizer.step()`: no gradient may be left unexchanged."""
        if inside_backward() and self._backwards.under_way:
            with self._failing_together():
                raise ConfigError(
                    "optimizer.step() was called inside of backward(), before the "
                    "gradients are those of all workers; call it afterwards"
                )
        if self._synchronize_in_step:
            self.synchronize()
        else:
            self._check_synchronized()
        closure = closures.closure_of(args, kwargs)
        if closure is None:
            return None
        if self._ahead is not None:  # the loss of a small batch is not the batch's
            self._ahead.remove()
            self._ahead = None
        return closures.replaced(args, kwargs, closures.averaged(self._job, closure))

    def synchronize(self) -> None:
        """Exchange gradients that are not exchanged yet. Collective.

        After a complete set of backward passes there are none: `backward()` has done
        it. All workers must call this at the same place of their loop.

        Raises:
            MismatchError: they do not.
            WorkerError: a worker failed.
        """
        self._backwards.look()
        if self._has_more():
            progress = Progress(self._passed, self._counts.steps)
            with self._failing_together():
                self._sparse.make_dense()
                self._mean.begin(own=not self._small, progress=progress)
            self._complete()

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Let `step()` inside exchange nothing, after `synchronize()`.

        Raises:
            ConfigError: from `step()`, if there are gradients that nobody exchanged.
        """
        self._synchronize_in_step = False
        try:
            yield
        finally:
            self._synchronize_in_step = True

    def _check_synchronized(self) -> None:
        self._backwards.look()
        if self._has_more():
            with self._failing_together():
                raise ConfigError(
                    "step() inside of skip_synchronize() would use gradients that no "
                    "other worker has; call optimizer.synchronize() before it"
                )

    def join(self) -> int:
        """Take part in the others' exchanges until all have called this. Collective.

        See `codedgrad.join`.

        Returns:
            The worker that came last; all have its parameters and buffers, and the
            state of its optimizer.

        Raises:
            ConfigError: workers must make the same steps: there is a `sampler`, or a
                code with redundancy.
            WorkerError: a worker failed.
        """
        with self._failing_together():
            if self._uneven:
                raise ConfigError(self._uneven)
            self._check_synchronized()
        came, joined = time.time(), 0
        progress = Progress(self._passes, self._counts.steps, joined=True)
        while joined < self._job.size:
            with self._failing_together():
                for p in self.parameters:
                    p.grad = None
                self._remember()
                self._mean.begin(own=True, progress=progress)
                joined = self._mean.complete()
        self._small = self._failed = self._remembered = self._exchanged = False
        for p in self.parameters:
            p.grad = None
        last = collectives.last_of(came)
        layout = self._mean.payload.layout
        names = [f"parameter {i}" for i in range(len(self.parameters))]
        broadcast_parameters(dict(zip(names, self.parameters, strict=True)), last)
        buffers = zip(layout.buffer_names, layout.buffers, strict=True)
        broadcast_parameters(dict(buffers), last)
        optimizer = self._optimizer()
        if optimizer is not None:
            broadcast_optimizer_state(optimizer, last)
        return last

    def _has_more(self) -> bool:
        """Returns whether the step would use gradients that are not exchanged.

        These are of passes which are too few for an exchange, of one that failed, or,
        where nothing was exchanged in this step, the user's own (for example from
        `torch.autograd.grad`).
        """
        if self._passed:
            return True
        if self._exchanged and not self._failed:
            return False
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._failed and gradients:
            return True
        return not all(map(self._mean.holds, gradients))

    def _after_step(self, *_: Any) -> None:
        self._outer.put_back()
        self._counts.steps += 1
        self._counts.forwards = 0
        self._exchanged = False
        if self._catches_up is not None:
            self._catches_up.look()
        self._slow.pass_begins(self._mean.number)  # where there is no forward to see

    # ---- see `PassCounter` and `Exchanging` ----

    def needless(self) -> bool:
        """Returns whether the exchange of the next pass is decoded already."""
        return self._mean.done(self._mean.number)

    def skipped(self) -> None:
        """Hears that a forward of this exchange was not computed."""
        self._small = True

    def passes_made(self) -> int:
        """Returns the number of backward passes so far."""
        return self._passes_made

    def decoded_after(self, passes: int) -> bool:
        """Returns whether the exchange is decoded that holds the pass so many later."""
        later = (self._passed + passes) // self._passes
        return self._mean.done(self._mean.number + later)
