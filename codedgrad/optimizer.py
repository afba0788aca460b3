"""Face 2: `DistributedOptimizer`, for an unmodified training loop of Horovod's shape.

    optimizer = codedgrad.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), code=code, model=model)

The exchange begins in the last `backward()` of a step, bucket by bucket as gradients
come, and completes inside it, as in DDP, never in `step()`: clipping, GradScaler and
schedulers need no change. The optimizer that comes back is the one that went in, with
its class, state, defaults, hooks and pickling.

The loop cannot be run twice for somebody else, so here a worker computes only what
its code requires. Redundancy comes from fractional repetition, where each group's
workers get the same merged batch (`ShardBatchSampler`), and one row of any of them
suffices. For back-ups and mid-pass abandonment use `CodedGradient`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor

from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime
from codedgrad.row.payload import Payload
from codedgrad.row.writer import Leaf, RowWriter
from codedgrad.settings import Settings, combine
from codedgrad.step import start
from codedgrad.step.check import ValueCheck, model_tensors
from codedgrad.step.rng import seed_pass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Unpack

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler
    from codedgrad.exchange.base import RowBuffer
    from codedgrad.settings import Keywords

_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, _DropIn] = (
    weakref.WeakKeyDictionary()
)


class DropInKeywords(TypedDict, total=False):
    """The settings that the drop-in has, as keywords; see `codedgrad.settings`."""

    wire: str
    bucket_mb: float | None
    overlap: bool
    window: int
    seed: int


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    code: Code | None = None,
    model: torch.nn.Module | None = None,
    sampler: ShardBatchSampler | None = None,
    backward_passes_per_step: int = 1,
    **keywords: Unpack[DropInKeywords],
) -> torch.optim.Optimizer:
    """Make `backward()` leave the mean gradient over all workers in `p.grad`.

    Collective.

    Args:
        optimizer: any torch optimizer; it is returned as it is.
        named_parameters: the model's, in the same order on every worker.
        code: who computes what; None means `codes.uncoded(size())`. Its rows must be
            plain sums (`code.linear` False).
        model: give it to have dropout and batch-norm statistics decoded too, so that
            they are the same bits on every worker.
        sampler: give it so that a worker that lags skips the data of steps which are
            decoded already.
        backward_passes_per_step: backward passes before an exchange; their gradients
            add up, as in torch.
        **keywords: `wire`, `bucket_mb`, `overlap` and `window` (see
            `codedgrad.settings.ExchangeSettings`); `seed` of the random numbers of a
            pass (with `model`).

    Raises:
        ConfigError: bad arguments, a code for another number of workers, or one whose
            rows are not plain sums.
        MismatchError: the workers' models, codes or settings differ.
        TypeError: there is no such keyword.
    """
    if unknown := set(keywords) - set(DropInKeywords.__annotations__):
        raise TypeError(
            f"DistributedOptimizer() got unexpected keyword argument(s) "
            f"{sorted(unknown)}; there are {', '.join(DropInKeywords.__annotations__)}"
        )
    job = runtime.current()
    with start.failing_together(job, "could not start"):
        plan = DropInPlan(
            code=code if code is not None else codes.uncoded(job.size),
            passes=backward_passes_per_step,
            settings=combine(None, cast("Keywords", keywords)),
        )
        plan.check(job.size)
        drop_in = _DropIn(job, list(named_parameters), model, plan)
    if sampler is not None:
        sampler.skip = drop_in.decoded
        drop_in.sampler = sampler
    _attached[optimizer] = drop_in
    return optimizer


def detach(optimizer: torch.optim.Optimizer) -> None:
    """Undo `DistributedOptimizer`: gradients are the worker's own again. Collective.

    Raises:
        ConfigError: the optimizer is not distributed.
    """
    drop_in = _attached.pop(optimizer, None)
    if drop_in is None:
        raise ConfigError("this optimizer did not come from DistributedOptimizer")
    drop_in.close()


@dataclass(frozen=True)
class DropInPlan:
    """What a step of the drop-in is.

    Attributes:
        code: who computes what.
        passes: backward passes of a step.
        settings: of the exchange and the run.
    """

    code: Code
    passes: int
    settings: Settings

    def check(self, workers: int) -> None:
        """Refuse a code or a number of passes that does not fit.

        Raises:
            ConfigError: with the remedy.
        """
        code = self.code
        if code.workers != workers:
            raise ConfigError(
                f"the code is for {code.workers} workers and the job has {workers}; "
                f"build it with codedgrad.size()"
            )
        if code.linear or any(n != 1 for n in code.required):
            raise ConfigError(
                f"the drop-in optimizer needs a code whose workers send one plain sum, "
                f"like codes.uncoded or codes.fractional; {code.describe()} needs one "
                f"backward per shard: use codedgrad.CodedGradient"
            )
        if self.passes < 1:
            raise ConfigError(
                f"backward_passes_per_step must be >= 1, got {self.passes}"
            )


class _DropIn:
    """The hooks on the parameters, and the exchange in the last backward of a step."""

    def __init__(
        self,
        job: runtime.Runtime,
        named: list[tuple[str, Tensor]],
        model: torch.nn.Module | None,
        plan: DropInPlan,
    ) -> None:
        self._job = job
        self._passes = plan.passes
        self._seed = plan.settings.run.seed
        self._step = 0
        self._passed = 0
        self._queued = False
        settings, code = plan.settings.exchange, plan.code
        buffers = model.named_buffers() if model is not None else ()
        self._payload = Payload(named, buffers, workers=job.size, settings=settings)
        others = [("backward_passes_per_step", str(plan.passes))]
        start.agree(self._payload, code, settings, others)
        start.cut(job, self._payload)
        if model is not None:
            model_tensors(model)  # refuses a model
        self._named = named
        self._check = ValueCheck(job, self._payload, self._before_the_step)
        self.sampler: ShardBatchSampler | None = None
        self._exchange = EngineExchange(job, code, self._payload.layout, settings)
        node = code.work[job.rank][0]
        self._row = self._exchange.row_of(job.rank, 0)
        self._first_part = int(code.tree.start[node])
        covered = int(code.tree.stop[node]) - self._first_part
        self._weight = covered / code.parts
        runtime.barrier()  # nobody sends before all have opened their exchange
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(self._gradient_ready)
            for p in self._payload.layout.parameters
        ]
        if model is not None:
            self._handles.append(model.register_forward_pre_hook(self._before_forward))
        # After the hooks above, which begin the row that it writes.
        self._writer = RowWriter(self._payload, overlap=settings.overlap)
        self._buffer: RowBuffer | None = None  # of the row that is being written

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._writer.close()
        self._exchange.close()

    def _before_the_step(self) -> list[tuple[str, Tensor]]:
        """Returns parameters and buffers; forward has changed the buffers since."""
        buffers = self._payload.buffers
        if not buffers.remembered:  # no pass in training mode, which changes none
            return self._named
        names = self._payload.layout.buffer_names
        return [*self._named, *zip(names, buffers.before, strict=True)]

    def decoded(self, step: int) -> bool:
        """Returns whether that step is decoded, so its data are not needed here."""
        return self._exchange.done(step)

    # ---- hooks, in the order in which they are called ----

    def _before_forward(self, module: torch.nn.Module, _inputs: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        if self._passed == 0:
            self._payload.buffers.remember()
        seed_pass(self._seed, self._step, self._first_part + self._passed)

    def _gradient_ready(self, _parameter: Tensor) -> None:
        if self._queued:
            return
        self._queued = True
        torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)
        if self._passed == self._passes - 1:
            self._begin_row()

    def _begin_row(self) -> None:
        """Begin the row in the step's last backward, which completes `p.grad`."""
        self._check.begin_drop_in(self._step, self.sampler)
        self._exchange.begin(self._step)
        if self._exchange.done(self._step):
            return
        self._buffer = self._exchange.row_buffer()
        self._writer.begin(Leaf(self._buffer.tensor, self._weight, (), self, True))
        self._writer.backward_begins()

    def bucket_checked(self, finite: bool) -> None:
        """Let NaN and Inf through, as Horovod and DDP do."""

    def bucket_ready(self, bucket: int) -> None:
        """Send a bucket of the row, which will not change any more."""
        assert self._buffer is not None  # since _begin_row
        self._exchange.post_bucket(self._step, self._row, bucket, self._buffer)

    def _end_of_backward(self) -> None:
        self._queued = False
        self._passed += 1
        if self._passed < self._passes:
            return
        self._passed = 0
        with start.failing_together(self._job, f"failed in step {self._step}"):
            if self._buffer is not None:
                self._writer.finish(0.0)
                self._buffer = None
            self._exchange.wait_all(self._step)
            total, tail = self._check.verified(self._exchange.take(self._step))
        for p in self._payload.layout.parameters:
            p.grad = None
        self._payload.scatter(total, tail)
        self._step += 1
