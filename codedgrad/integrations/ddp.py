"""DistributedDataParallel with codedgrad's exchange, by a communication hook.

    model = DistributedDataParallel(model)
    codedgrad.ddp.register(model)                      # the line that is new

torch finds out which gradients are complete, in C++, and hands them over bucket by
bucket while the backward runs. Here they are copied into this worker's row, which goes
out in buckets of its own. At the last bucket the hook waits until the exchange is
decoded, and gives torch the mean. So the loop, `no_sync`, clipping and the rest stay.

A backward of DDP cannot be run for somebody else, nor can its forward be left out, so
there are no back-ups. With `policy=approximate(...)` nobody waits for a worker that is
late now and then; one that is always late is waited for, `window` exchanges later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import torch

from codedgrad import codes
from codedgrad.errors import ConfigError, unknown_keywords
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime
from codedgrad.job.settings import combine, resolve
from codedgrad.row.payload import Payload
from codedgrad.step import live, start
from codedgrad.step.check import ValueCheck
from codedgrad.step.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Unpack

    from codedgrad.exchange.base import RowBuffer
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.settings import Approximate, Keywords, Settings
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport


__all__ = ["DdpExchange", "DdpKeywords", "register"]


class DdpKeywords(TypedDict, total=False):
    """The settings of an exchange of DDP's; see `codedgrad.job.settings`."""

    wire: str
    bucket_mb: float | None
    window: int
    policy: str | Approximate
    log: str | Path | None


def register(model: Any, **keywords: Unpack[DdpKeywords]) -> DdpExchange:
    """Let codedgrad exchange the gradients of a DistributedDataParallel. Collective.

    Args:
        model: the DistributedDataParallel, over all workers of the job, before its
            first backward.
        **keywords: see `DdpKeywords`. With `policy=codedgrad.approximate(...)` DDP must
            not wait for everybody by itself: `find_unused_parameters` is to be False,
            and with buffers `broadcast_buffers`, too.

    Returns:
        The exchange, with `report`, `record` and `close()`. DDP keeps it alive.

    Raises:
        ConfigError: `model` is something else, or is over other processes, or its
            settings do not go together with these.
        MismatchError: the workers' models or settings differ.
        TypeError: there is no such keyword.
    """
    job = runtime.current()
    with start.failing_together(job, "could not start"):
        if unknown := set(keywords) - set(DdpKeywords.__annotations__):
            raise unknown_keywords(register, unknown, DdpKeywords.__annotations__)
        settings = combine(None, cast("Keywords", keywords))
        policy = resolve(settings.policy) if job.size > 1 else None
        _check(job, model, policy)
        exchange = DdpExchange(job, model, settings, policy)
        model.register_comm_hook(exchange, _hook)
        runtime.barrier()  # nobody sends before all have opened their exchange
    return exchange


def _check(job: Runtime, model: Any, policy: Approximate | None) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigError: with the remedy.
    """
    ddp = torch.nn.parallel.DistributedDataParallel
    if not isinstance(model, ddp):
        raise ConfigError(
            f"got {type(model).__qualname__}, wanted a DistributedDataParallel; for "
            f"another model there are CodedGradient and DistributedOptimizer"
        )
    group = torch.distributed.get_world_size(model.process_group)
    if group != job.size:
        raise ConfigError(
            f"the DistributedDataParallel is over {group} process(es), and the job has "
            f"{job.size}; give init_process_group(rank=codedgrad.rank(), "
            f"world_size=codedgrad.size())"
        )
    if getattr(model, "mixed_precision", None) is not None:
        raise ConfigError(
            "DistributedDataParallel(mixed_precision=...) has a hook of its own; use "
            'autocast, and wire="bfloat16" for half the bytes'
        )
    for name, p in model.module.named_parameters():
        if title := live.owner_of(p):
            raise ConfigError(
                f"the gradient of {name!r} is exchanged already, by the CodedGradient "
                f"of {title}; use one of the two, or close() that one first"
            )
    if policy is None:
        return
    if model.find_unused_parameters:
        raise ConfigError(
            "with find_unused_parameters=True every backward of DDP waits for all "
            "workers, so nothing is gained by an approximate policy; use "
            'find_unused_parameters=False, or policy="exact"'
        )
    if model.broadcast_buffers and any(True for _ in model.module.buffers()):
        raise ConfigError(
            "with broadcast_buffers=True every forward of DDP waits for all workers, "
            "so nothing is gained by an approximate policy; give "
            "DistributedDataParallel(broadcast_buffers=False)"
        )


class _Handed(NamedTuple):
    """A bucket of DDP's, whose mean torch waits for."""

    buffer: Tensor
    gradients: list[Tensor]
    places: list[int]
    future: Any


class DdpExchange:
    """The exchanges of one DistributedDataParallel."""

    def __init__(
        self, job: Runtime, model: Any, settings: Settings, policy: Approximate | None
    ) -> None:
        """Lay out the rows, compare the models and open the exchange. Collective."""
        ignored = set(getattr(model, "parameters_to_ignore", ()))
        self._named = [
            (n, p) for n, p in model.module.named_parameters() if n not in ignored
        ]
        code = codes.uncoded(job.size)
        payload = Payload(self._named, (), workers=job.size, settings=settings.exchange)
        others = [("exchange", "ddp"), ("policy", str(policy or "exact"))]
        mine = start.described(payload, code, settings.exchange, others, [])
        start.agree(payload, mine)
        start.cut(job, payload)
        self._job, self._payload, layout = job, payload, payload.layout
        self._values = ValueCheck(
            job, payload, self._parameters, estimates=policy is not None
        )
        self._exchange = EngineExchange(
            job, code, layout, settings.exchange, approximate=policy
        )
        self._row_number = self._exchange.row_of(job.rank, 0)
        reporter = start.reporter_into(settings.run.log, job.rank)
        self._journal = Journal(code, self._exchange, reporter)
        self._place = {id(p): i for i, p in enumerate(layout.parameters)}
        self._buckets = [layout.buckets_of(i) for i in range(len(layout.parameters))]
        # What has to come before a bucket of the row is whole; the tail comes last.
        self._needs = [end > layout.gradients for end in layout.bucket_starts[1:]]
        self._needed = [int(tail) for tail in self._needs]
        for inside in self._buckets:
            for bucket in inside:
                self._needed[bucket] += 1
        self._missing: list[int] = []
        self._handed: list[_Handed] = []
        self._row: RowBuffer | None = None
        self._number = 0
        self._closed = False

    def _parameters(self, *, lasting: bool) -> list[tuple[str, Tensor]]:
        del lasting
        return self._named

    @property
    def report(self) -> StepReport | None:
        """What happened in the last exchange; None before the first has ended."""
        return self._journal.report

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._journal.record

    def close(self) -> None:
        """End the exchange; a later backward is an error. Collective, once will do."""
        if not self._closed:
            self._closed = True
            self._journal.close()
            self._exchange.close()

    def reduce(self, bucket: Any) -> Any:
        """Take over a bucket of DDP's, and return the future of its mean."""
        with start.failing_together(self._job, f"failed in exchange {self._number}"):
            if bucket.index() == 0:
                self._begin()
            assert self._row is not None  # the first bucket of a backward is number 0
            layout, weight = self._payload.layout, 1.0 / self._job.size
            places = [self._place[id(p)] for p in bucket.parameters()]
            gradients = list(bucket.gradients())
            for place, gradient in zip(places, gradients, strict=True):
                view = layout.view(place, self._row.tensor)
                view.copy_(gradient.detach()).mul_(weight)
                self._came(self._buckets[place])
            future: Any = torch.futures.Future()
            handed = _Handed(bucket.buffer(), gradients, places, future)
            self._handed.append(handed)
            if bucket.is_last():
                self._complete(weight)
        return future

    def _begin(self) -> None:
        """Open the next exchange.

        Raises:
            ConfigError: the exchange is closed, or a backward before has failed.
        """
        if self._closed:
            raise ConfigError(
                "the exchange of this DistributedDataParallel is closed; wrap the "
                "model anew, and register that one"
            )
        if self._row is not None:
            raise ConfigError(
                "a backward pass of this DistributedDataParallel ended with an error, "
                "which was caught, after a part of its gradient had been sent"
            )
        self._journal.begins(self._number)
        self._values.begin_drop_in(self._number, None)
        self._journal.opened(self._exchange.begin(self._number))
        self._missing = list(self._needed)
        self._row = self._exchange.row_buffer()

    def _came(self, buckets: Any) -> None:
        """Something of these buckets has come; send those that are whole."""
        assert self._row is not None
        layout = self._payload.layout
        for bucket in buckets:
            self._missing[bucket] -= 1
            if self._missing[bucket]:
                continue
            if (wire := layout.wire_of(bucket)) is not None:
                begin, end = layout.bucket_starts[bucket : bucket + 2]
                part = self._row.tensor[begin:end]
                part.copy_(part.to(wire))
            self._exchange.post_bucket(
                self._number, self._row_number, bucket, self._row
            )

    def _complete(self, weight: float) -> None:
        """Send the rest, wait, and hand the means over."""
        assert self._row is not None
        layout, tail = self._payload.layout, self._payload.tail
        tail.fill(0.0, [True] * len(layout.parameters))
        out = self._row.tensor[layout.gradients :]
        torch.mul(tail.values, weight, out=out)
        out[layout.metric_area] = tail.values[layout.metric_area]
        self._came([b for b, holds in enumerate(self._needs) if holds])
        self._journal.computed()
        self._exchange.wait_all(self._number)
        decoded = self._exchange.take(self._number)
        total, _ = self._values.verified(decoded)
        means = layout.views(total)
        for handed in self._handed:
            for place, gradient in zip(handed.places, handed.gradients, strict=True):
                gradient.copy_(means[place])
            handed.future.set_result(handed.buffer)
        self._handed, self._row = [], None
        self._journal.decoded()
        self._number += 1


def _hook(state: DdpExchange, bucket: Any) -> Any:
    return state.reduce(bucket)


_hook.__annotations__.clear()  # torch compares them with types, and these are texts
