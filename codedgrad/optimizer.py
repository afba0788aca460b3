"""The drop-in face: an unmodified training loop, Horovod's shape.

    optimizer = codedgrad.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), code=code, model=model)

The exchange begins in the last `backward()` of a step, bucket by bucket as gradients
come, and completes inside it, as in DDP, never in `step()`: clipping, GradScaler and
schedulers need no change. The optimizer that comes back is the one that went in, with
its class, state, defaults, hooks and pickling.

The loop cannot be run twice for somebody else, so here a worker computes only what
its code requires: redundancy comes from fractional repetition, where each group's
workers get the same merged batch (`ShardBatchSampler`), and one row of any of them
does. For back-ups and mid-pass abandonment use `CodedGradient`.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad import codes
from codedgrad.errors import ConfigError, WorkerError
from codedgrad.exchange import link
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime
from codedgrad.row.layout import Payload
from codedgrad.row.writer import RowWriter
from codedgrad.settings import ExchangeSettings
from codedgrad.step.rng import seed_pass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler

_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, _DropIn] = (
    weakref.WeakKeyDictionary()
)


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    code: Code | None = None,
    model: torch.nn.Module | None = None,
    sampler: ShardBatchSampler | None = None,
    backward_passes_per_step: int = 1,
    window: int = 16,
    seed: int = 0,
    bucket_mb: float | None = None,
    overlap: bool = True,
    wire: str = "float32",
) -> torch.optim.Optimizer:
    """Make `backward()` leave the mean gradient over all workers in `p.grad`.

    Collective.

    Args:
        optimizer: any torch optimizer; returned as it is.
        named_parameters: the model's, in the same order on every worker.
        code: `codes.uncoded(size())` if None. Rows must be plain sums
            (`code.linear` False).
        model: give it to have dropout and batch-norm statistics decoded too, so that
            they are the same bits on every worker.
        sampler: give it so that a worker that lags skips the data of steps which are
            decoded already.
        backward_passes_per_step: backward passes before an exchange; their gradients
            add up, as in torch.
        window: steps that the slowest worker may lag before the others wait.
        seed: of the random numbers of a pass (with `model`).
        bucket_mb: size of the pieces that are exchanged, in MiB; None: by the rule of
            `codedgrad.row.cuts`.
        overlap: send gradients bucket by bucket while the last backward runs.
        wire: "float32", or "bfloat16" or "float16": the type in which gradients and
            their sum travel, rounded to it.

    Raises:
        ConfigError: bad arguments, a code for another number of workers, or one whose
            rows are not plain sums.
        MismatchError: the workers' models, codes or settings differ.
    """
    here = runtime.current()
    try:
        drop_in = _DropIn(
            here,
            list(named_parameters),
            code if code is not None else codes.uncoded(here.size),
            model,
            backward_passes_per_step,
            window,
            seed,
            bucket_mb,
            overlap=overlap,
            wire=wire,
        )
    except WorkerError:
        raise
    except Exception as error:
        here.fail(
            f"worker {here.rank} could not start: {type(error).__name__}: {error}"
        )
        raise
    if sampler is not None:
        sampler.skip = drop_in.decoded
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


class _DropIn:
    """Hooks on the parameters; the exchange at the end of the last backward."""

    def __init__(
        self,
        here: runtime.Runtime,
        named: list[tuple[str, Tensor]],
        code: Code,
        model: torch.nn.Module | None,
        passes: int,
        window: int,
        seed: int,
        bucket_mb: float | None,
        *,
        overlap: bool = True,
        wire: str = "float32",
    ) -> None:
        if code.workers != here.size:
            raise ConfigError(
                f"the code is for {code.workers} workers and the job has {here.size}; "
                f"build it with codedgrad.size()"
            )
        if code.linear or any(n != 1 for n in code.required):
            raise ConfigError(
                f"the drop-in optimizer needs a code whose workers send one plain sum, "
                f"like codes.uncoded or codes.fractional; {code.describe()} needs one "
                f"backward per shard: use codedgrad.CodedGradient"
            )
        if passes < 1:
            raise ConfigError(f"backward_passes_per_step must be >= 1, got {passes}")
        self._runtime = here
        self._passes = passes
        self._seed = seed
        self._step = 0
        self._passed = 0
        self._queued = False
        self._payload = Payload(
            named,
            model.named_buffers() if model is not None else (),
            workers=here.size,
            bucket_mb=bucket_mb,
            wire=wire,
        )
        runtime.check_agreement(
            "code, model or settings",
            [
                ("code", f"{code.describe()} [{code.fingerprint()[:12]}]"),
                ("backward_passes_per_step", str(passes)),
                ("window", str(window)),
                ("bucket_mb", str(bucket_mb)),
                ("wire", wire),
                *self._payload.describe(),
            ],
        )
        link.cut(here, self._payload)
        self._exchange = EngineExchange(
            here, code, self._payload, ExchangeSettings(window=window)
        )
        node = code.work[here.rank][0]
        self._row = self._exchange.row_of(here.rank, 0)
        self._first_part = int(code.tree.start[node])
        covered = int(code.tree.stop[node]) - self._first_part
        self._weight = covered / code.parts
        runtime.barrier()  # nobody sends before all have opened it
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(self._gradient_ready)
            for p in self._payload.parameters
        ]
        if model is not None:
            self._handles.append(model.register_forward_pre_hook(self._before_forward))
        # After the hooks above, which begin the row that it writes.
        self._writer = RowWriter(self._payload, overlap=overlap)
        self._writing = False

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._writer.close()
        self._exchange.close()

    def decoded(self, step: int) -> bool:
        """True when that step is decoded and its data are not needed here."""
        return self._exchange.done(step)

    def _before_forward(self, module: torch.nn.Module, _inputs: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        if self._passed == 0:
            self._payload.remember_buffers()
        seed_pass(self._seed, self._step, self._first_part + self._passed)

    def _gradient_ready(self, _parameter: Tensor) -> None:
        if self._queued:
            return
        self._queued = True
        torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)
        if self._passed == self._passes - 1:
            self._begin_row()

    def _begin_row(self) -> None:
        """In the last backward of a step; what `p.grad` gets now is its last share."""
        step = self._step
        self._exchange.begin(step)
        if self._exchange.done(step):
            return
        row = self._exchange.row_buffer()

        def send(bucket: int) -> None:
            self._exchange.post_bucket(step, self._row, bucket, row)

        self._writer.begin(row.tensor, self._weight, (), lambda _: None, send)
        self._writer.backward_begins()
        self._writing = True

    def _end_of_backward(self) -> None:
        self._queued = False
        self._passed += 1
        if self._passed < self._passes:
            return
        self._passed = 0
        step = self._step
        try:
            if self._writing:
                self._writing = False
                self._writer.finish(0.0)
            self._exchange.wait_all(step)
        except WorkerError:
            raise
        except BaseException as error:
            self._runtime.fail(
                f"worker {self._runtime.rank} failed in step {step}: "
                f"{type(error).__name__}: {error}"
            )
            raise
        total, tail = self._exchange.take(step)
        for p in self._payload.parameters:
            p.grad = None
        self._payload.scatter(total, tail)
        self._step += 1
