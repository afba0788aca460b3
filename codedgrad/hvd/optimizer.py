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
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import torch

from codedgrad import codes
from codedgrad.errors import ConfigError, unknown_keywords
from codedgrad.hvd import names
from codedgrad.hvd.words import (
    Average,
    Compression,
    ReduceOp,
    Sum,
    check_op,
    check_process_set,
    wire_of,
)
from codedgrad.job import collectives, runtime
from codedgrad.job.settings import combine
from codedgrad.step import live, start, strangers
from codedgrad.step.dropin import DropIn
from codedgrad.step.plan import DropInPlan, Trained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Unpack

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler
    from codedgrad.job.faults import Faults
    from codedgrad.job.settings import Approximate, Keywords

_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, DropIn] = (
    weakref.WeakKeyDictionary()
)


class DropInKeywords(TypedDict, total=False):
    """The further keywords of the drop-in.

    See `codedgrad.job.settings` for the first eight. With `policy=approximate(...)`
    nobody waits for the late, see `catch_up`. The others are Horovod's:
    `gradient_predivide_factor`, `num_groups` and `groups` change no result here, since
    every gradient is divided before the sum, and travels in buckets. Sparse ones travel
    densely; `sparse_as_dense` leaves them so. `process_set` is the global one.

    Attributes:
        catch_up: with an approximate policy and `model`, whether a worker that is
            behind leaves out what nobody needs: in a pass of an exchange that is
            decoded already, the model is not computed, and its output is that of one
            earlier sample, repeated. The loss of such a pass says nothing;
            `optimizer.report.fast_forwarded` is True then. False computes every pass,
            and a worker that is always late is waited for, `window` exchanges later.
    """

    wire: str
    bucket_mb: float | None
    overlap: bool
    window: int
    seed: int
    policy: str | Approximate
    faults: Faults | str | None
    log: str | Path | None
    catch_up: bool
    gradient_predivide_factor: float
    num_groups: int
    groups: Any
    sparse_as_dense: bool
    process_set: Any


_SETTINGS = (
    *("wire", "bucket_mb", "overlap", "window"),
    *("seed", "policy", "faults", "log"),
)


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    *,
    code: Code | None = None,
    model: torch.nn.Module | None = None,
    sampler: ShardBatchSampler | None = None,
    **keywords: Unpack[DropInKeywords],
) -> Any:
    """Make `backward()` leave the mean gradient over all workers in `p.grad`.

    Collective. The optimizer has more methods afterwards. `synchronize()` exchanges
    what is left of an incomplete accumulation, where `step()` would do so. `with
    optimizer.skip_synchronize(): optimizer.step()` exchanges nothing any more.
    `join()` takes part in the others' exchanges until all workers have called it.
    `close()` undoes it all; so does `with optimizer.closing(): ...` at its end.
    `report` tells of the last exchange (no loss), `record` holds all reports so far.

    Args:
        optimizer: any torch optimizer; it is returned as it is.
        named_parameters: the model's, in the same order on every worker; None takes
            those of the optimizer's parameter groups.
        compression: `Compression.fp16` is `wire="float16"`, `.bf16` `wire="bfloat16"`.
        backward_passes_per_step: backward passes before an exchange; their gradients
            add up, as in torch. If a step has fewer, or a rest, `optimizer.step()`
            exchanges them.
        op: Average, or Sum, by which each worker's gradients are multiplied by the
            number of workers as they come.
        code: who computes what; None means `codes.uncoded(size())`. Its rows must be
            plain sums (`code.linear` False).
        model: give it to have dropout and batch-norm statistics decoded too, so that
            they are the same bits on every worker.
        sampler: give it so that a worker that lags skips the data of steps which are
            decoded already.
        **keywords: `wire`, `bucket_mb`, `overlap` and `window` (see
            `codedgrad.ExchangeSettings`), `seed`, `log`, `faults` and `policy`; for
            others see `DropInKeywords`.

    Raises:
        ConfigError: bad arguments, a code for another number of workers, or one whose
            rows are not plain sums; or the optimizer or a parameter is distributed
            already, or has no name.
        MismatchError: the workers' models, codes or settings differ.
        TypeError: there is no such keyword.
    """
    plan = _Asked(compression, backward_passes_per_step, op, code, dict(keywords))
    job = runtime.current()
    with start.failing_together(job, "could not start"):
        chosen = plan.plan(job.size)
        named = names.named(optimizer, named_parameters)
        _check_free(optimizer, named)
        drop_in = DropIn(job, Trained(optimizer, named, model, sampler), chosen)
        _attached[optimizer] = drop_in
        _give_methods(optimizer, drop_in)
    return optimizer


def _give_methods(optimizer: Any, drop_in: DropIn) -> None:
    """Give an optimizer its methods; its reports and its end stay when it has ended."""
    for name in _METHODS:
        # Nobody copies or pickles these; see `Optimizer.__getstate__`.
        setattr(optimizer, name, getattr(drop_in, name))
    known = weakref.ref(optimizer)  # which is not to be kept alive by itself
    optimizer.report, optimizer.record = None, drop_in.record
    optimizer.close = partial(_close, known)
    optimizer.closing = partial(_closing, known)


def _close(known: weakref.ref[torch.optim.Optimizer], *, alone: bool = False) -> None:
    """End the exchange and take the hooks off. Collective; once will do."""
    optimizer = known()
    if optimizer is not None and optimizer in _attached:
        detach(optimizer, alone=alone)


@contextmanager
def _closing(known: weakref.ref[torch.optim.Optimizer]) -> Iterator[None]:
    """Close at the end of a block; after an error wait for nobody."""
    try:
        yield
    except BaseException:
        _close(known, alone=True)
        raise
    _close(known)


class _Asked(NamedTuple):
    """The arguments of `DistributedOptimizer` that say how gradients are exchanged."""

    compression: Any
    passes: int
    op: Any
    code: Code | None
    keywords: dict[str, Any]

    def plan(self, size: int) -> DropInPlan:
        """Return the exchange that is asked for.

        Raises:
            ConfigError: with the remedy.
            TypeError: there is no such keyword.
        """
        known = DropInKeywords.__annotations__
        if unknown := set(self.keywords) - set(known):
            raise unknown_keywords(DistributedOptimizer, unknown, known)
        chosen = {k: v for k, v in self.keywords.items() if k in _SETTINGS}
        wire = wire_of(self.compression)
        if wire != "float32" and chosen.setdefault("wire", wire) != wire:
            raise ConfigError(
                f"compression says wire={wire!r}, and wire= is {chosen['wire']!r}"
            )
        plan = DropInPlan(
            code=self.code if self.code is not None else codes.uncoded(size),
            passes=self.passes,
            settings=combine(None, cast("Keywords", chosen)),
            catch_up=bool(self.keywords.get("catch_up", True)),
            sparse_as_dense=bool(self.keywords.get("sparse_as_dense", False)),
            multiply=_check_horovod(self.op, self.keywords, size),
        )
        plan.check(size)
        plan.estimates(size)
        return plan


_METHODS = ("synchronize", "skip_synchronize", "join")


def detach(optimizer: torch.optim.Optimizer, *, alone: bool = False) -> None:
    """Undo `DistributedOptimizer`: gradients are the worker's own again. Collective.

    Args:
        optimizer: what `DistributedOptimizer` has returned.
        alone: only take the hooks off, without the others, as after an error.

    Raises:
        ConfigError: the optimizer is not distributed.
    """
    drop_in = _attached.pop(optimizer, None)
    if drop_in is None:
        raise ConfigError("this optimizer did not come from DistributedOptimizer")
    for name in _METHODS:
        delattr(optimizer, name)
    drop_in.close(alone=alone)


def join() -> int:
    """Wait until all workers have called this, and return the one that came last.

    For workers with unequal numbers of batches, as in Horovod. Collective. With a
    `DistributedOptimizer`, a worker that waits here gives gradients of zeros to the
    exchanges of those that still train, whose mean is still over all workers. At the
    end all take over the parameters, the buffers (with `model=`) and the optimizer's
    state of the last one.

    Raises:
        ConfigError: there are several distributed optimizers, whose `join()` says
            which, or one with a `sampler` or a code with redundancy.
        WorkerError: a worker failed, or does something else than training.
    """
    attached = list(_attached.values())
    if len(attached) > 1:
        raise ConfigError(
            f"there are {len(attached)} distributed optimizers, and join() does not "
            f"know whose exchanges to take part in; call optimizer.join()"
        )
    return attached[0].join() if attached else collectives.join()


def _check_horovod(op: Any, keywords: Any, size: int) -> int:
    """Check Horovod's keywords; returns by what gradients are multiplied.

    Raises:
        ConfigError: with the remedy.
    """
    op = check_op(op, (Average, Sum))
    factor = keywords.get("gradient_predivide_factor", 1.0)
    if factor != 1.0 and op is not Average:
        raise ConfigError(
            "gradient_predivide_factor divides a mean in two parts; it needs op=Average"
        )
    if not factor > 0.0:
        raise ConfigError(f"gradient_predivide_factor must be > 0, got {factor}")
    groups = keywords.get("groups")
    for name, value in (
        ("num_groups", keywords.get("num_groups", 0)),
        ("groups", groups),
    ):
        if isinstance(value, int) and value < 0:
            raise ConfigError(f"{name} must be 0 or more, got {value}")
    if not (groups is None or isinstance(groups, (int, list, tuple))):
        raise ConfigError(
            f"groups must be a number, or a list of lists of parameters, got {groups!r}"
        )
    check_process_set(keywords.get("process_set"))
    return size if op is Sum else 1


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
            "codedgrad.hvd.detach(optimizer) first"
        )
    live.refuse_horovods(optimizer)
    strangers.refuse_wrapped_parameters(named)
    if _taken(named) or any(live.owner_of(p) for _, p in named):
        gc.collect()  # an optimizer that nobody uses may be part of a cycle
    for of, p in named:
        if title := live.owner_of(p):
            raise ConfigError(
                f"the gradient of {of!r} is exchanged already, by the CodedGradient of "
                f"{title}; use one of the two, or close() that one first"
            )
    if name := _taken(named):
        raise ConfigError(
            f"the gradient of {name!r} is exchanged for another optimizer already; "
            f"call codedgrad.hvd.detach(optimizer) on that one first"
        )


def _taken(named: list[tuple[str, Tensor]]) -> str | None:
    """Returns the name of a parameter that another optimizer exchanges."""
    taken = {id(p) for d in _attached.values() for p in d.parameters}
    return next((name for name, p in named if id(p) in taken), None)
