"""Face 2: `DistributedOptimizer`, for an unmodified training loop of Horovod's shape.

    optimizer = codedgrad.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), code=code, model=model)

The exchange begins in the last `backward()` of `backward_passes_per_step`, bucket by
bucket as gradients come, and completes inside it, as in DDP: clipping, GradScaler and
schedulers need no change. Afterwards `p.grad` is the mean over all workers of what it
would be without codedgrad, however many backward passes a step has. The optimizer that
comes back is the one that went in, with its class, state, defaults, hooks and pickling;
`optimizer.state_dict()` also holds what a run needs to go on with the same bits. See
`codedgrad.step.dropin`.

The loop cannot be run twice for somebody else, so here a worker computes only what
its code requires. Redundancy comes from fractional repetition, where each group's
workers get the same merged batch (`ShardBatchSampler`), and one row of any of them
suffices. For back-ups and mid-pass abandonment use `CodedGradient`.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, TypedDict, cast

import torch

from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.job import runtime
from codedgrad.settings import combine
from codedgrad.step import start
from codedgrad.step.dropin import DropIn
from codedgrad.step.mean import DropInPlan, Trained

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from typing_extensions import Unpack

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler
    from codedgrad.settings import Keywords

_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, DropIn] = (
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
            add up, as in torch. If a step has fewer, or a rest, `optimizer.step()`
            exchanges them.
        **keywords: `wire`, `bucket_mb`, `overlap` and `window` (see
            `codedgrad.settings.ExchangeSettings`); `seed` of the random numbers of a
            pass (with `model`).

    Raises:
        ConfigError: bad arguments, a code for another number of workers, or one whose
            rows are not plain sums; or the optimizer or a parameter is distributed
            already.
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
        named = list(named_parameters)
        _check_free(optimizer, named)
        trained = Trained(optimizer, named, model, sampler)
        _attached[optimizer] = DropIn(job, trained, plan)
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


def _check_free(
    optimizer: torch.optim.Optimizer, named: list[tuple[str, Tensor]]
) -> None:
    """Refuse what is distributed already: it would be exchanged twice.

    Raises:
        ConfigError: with the remedy.
    """
    if optimizer in _attached:
        raise ConfigError(
            "this optimizer is distributed already; call "
            "codedgrad.optimizer.detach(optimizer) first"
        )
    if _taken(named):
        gc.collect()  # an optimizer that nobody uses may be part of a cycle
    if name := _taken(named):
        raise ConfigError(
            f"the gradient of {name!r} is exchanged for another optimizer already; "
            f"call codedgrad.optimizer.detach(optimizer) on that one first"
        )


def _taken(named: list[tuple[str, Tensor]]) -> str | None:
    """Returns the name of a parameter that another optimizer exchanges."""
    taken = {id(p) for d in _attached.values() for p in d.parameters}
    return next((name for name, p in named if id(p) in taken), None)
