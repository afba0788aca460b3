"""The exchange of the drop-in: `p.grad` becomes its mean over all workers.

    begin      opens the exchange and a row, unless it is decoded without this worker
    complete   writes the rest of the row, waits, and takes the decoded mean over

Between the two, a backward may run, which sends buckets of the row.

Workers that do not do the same would drift apart, or answer each other's exchanges. The
place of the loss in the row, which is of no use here, therefore carries a number that
tells how many passes and steps a worker has made (`Progress`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from codedgrad.errors import ConfigError, MismatchError
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime
from codedgrad.row.payload import Payload
from codedgrad.row.writer import Leaf, RowWriter
from codedgrad.step import start
from codedgrad.step.check import ValueCheck, refuse_wrapped
from codedgrad.step.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.data import ShardBatchSampler
    from codedgrad.exchange.base import RowBuffer
    from codedgrad.job.settings import Settings
    from codedgrad.row.tensors import Place


_JOINED = 65536.0  # more than the other numbers of all workers together


@dataclass(frozen=True)
class DropInPlan:
    """What an exchange of the drop-in is.

    Attributes:
        code: who computes what.
        passes: backward passes of an exchange.
        settings: of the exchange and the run.
        multiply: by what gradients are multiplied as they come: 1 for the mean over
            the workers, their number for the sum.
    """

    code: Code
    passes: int
    settings: Settings
    multiply: int = 1

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


class Trained(NamedTuple):
    """What the user trains.

    Attributes:
        optimizer: the optimizer.
        named: its parameters, by name.
        model: the module they are of; None: neither buffers nor random numbers are
            made the same.
        sampler: where the batches come from, if it is to skip some.
    """

    optimizer: torch.optim.Optimizer
    named: list[tuple[str, Tensor]]
    model: torch.nn.Module | None
    sampler: ShardBatchSampler | None


@dataclass
class Progress:
    """What a worker has done when an exchange completes.

    Attributes:
        passes: backward passes of the exchange.
        steps: steps of the optimizer.
        joined: it has no batches any more, and waits until all have none.
    """

    passes: int = 0
    steps: int = 0
    joined: bool = False

    def number(self, usual_passes: int) -> float:
        """Returns a number that is the same on workers which do the same.

        It is small in a usual exchange, so that a sum of many has no rounding to speak
        of. That of a worker that has joined is larger than any other.
        """
        if self.joined:
            return _JOINED
        return float(4 * ((usual_passes - self.passes) % 64) + self.steps % 4)


class GradientMean:
    """Exchanges of the gradients, and buffers, of what one optimizer trains.

    Attributes:
        number: of the exchange that comes next, or is under way.
        payload: what travels.
        part: the first micro-batch that this worker computes.
        sent: whether a part of the row that is being written is sent.
    """

    def __init__(
        self, job: runtime.Runtime, trained: Trained, plan: DropInPlan
    ) -> None:
        """Open the exchange. Collective."""
        self._job, self._plan = job, plan
        settings, code, model = plan.settings.exchange, plan.code, trained.model
        if model is not None:
            refuse_wrapped(model)
        self._subject = None if model is None else Subject(model)
        self.payload = self._lay_out(trained, job.size)
        others = [
            ("backward_passes_per_step", str(plan.passes)),
            ("seed", str(plan.settings.run.seed)),
            ("overlap", str(settings.overlap)),
            ("multiply", str(plan.multiply)),
        ]
        modules = [] if self._subject is None else self._subject.describe()
        start.agree(self.payload, code, settings, others, modules)
        start.cut(job, self.payload)
        self._named = trained.named
        self._values = ValueCheck(job, self.payload, self._before_the_forward)
        self._sampler = trained.sampler
        self._exchange = EngineExchange(
            job, code, self.payload.layout, settings, deputies=False
        )
        self._sends = self._exchange.row_of(job.rank, 0)
        shares = [_share(code, worker) for worker in range(code.workers)]
        self._weight, self._least = shares[job.rank], min(shares)
        self.part = int(code.tree.start[code.work[job.rank][0]])
        self.number = 0
        self._row: RowBuffer | None = None
        self.sent = False
        self._area = 0, 0  # address and bytes of the last decoded sum
        self._version = 0  # of the gradients in it
        runtime.barrier()  # nobody sends before all have opened their exchange

    def _lay_out(self, trained: Trained, workers: int) -> Payload:
        """Returns the payload: the gradients, and the model's buffers."""
        subject, settings = self._subject, self._plan.settings.exchange
        held: dict[int, list[Place]] = {}
        if subject is not None:
            subject.check()
            for place in subject.buffers:
                held.setdefault(id(place.tensor()), []).append(place)
        first = (places[0] for places in held.values())
        named = [(p.name, t) for p in first if (t := p.tensor()) is not None]
        payload = Payload(trained.named, named, workers=workers, settings=settings)
        payload.buffers.look_up_in([held[id(b)] for b in payload.layout.buffers])
        return payload

    def _before_the_forward(self, *, lasting: bool) -> list[tuple[str, Tensor]]:
        """Returns parameters and buffers; the forward has changed the buffers since."""
        subject = self._subject
        if subject is None:
            return self._named
        if not subject.same():
            subject.refresh()
        named = subject.kept(lasting=lasting)
        held = {id(t) for _, t in named}
        named += [(n, p) for n, p in self._named if id(p) not in held]
        buffers, layout = self.payload.buffers, self.payload.layout
        if not buffers.remembered:  # no pass in training mode, which changes any
            return named
        before = dict(zip(layout.buffer_names, buffers.before, strict=True))
        return [(n, before.get(n, t)) for n, t in named]

    def attach(self) -> RowWriter:
        """Attach the hooks that write a row during a backward, behind all others."""
        overlap = self._plan.settings.exchange.overlap
        self._writer = RowWriter(self.payload, overlap=overlap)
        return self._writer

    def begin(
        self, *, own: bool, first: Tensor | None = None, joined: bool = False
    ) -> None:
        """Begin an exchange.

        Args:
            own: send a row, unless the exchange is decoded without it.
            first: the parameter with the first gradient of a backward that runs and
                completes `p.grad`; None: it is complete.
            joined: this worker has nothing to train any more, and only takes part.
        """
        if joined:
            self._values.begin_joined(self.number)
        else:
            self._values.begin_drop_in(self.number, self._sampler)
        self._exchange.begin(self.number)
        if not own or self._exchange.done(self.number):
            return
        self._row = self._exchange.row_buffer()
        self._writer.begin(Leaf(self._row.tensor, self._weight, (), self, True))
        if first is not None:
            self._writer.backward_begins(first)

    def bucket_checked(self, finite: bool) -> None:
        """Let NaN and Inf through, as Horovod and DDP do."""

    def bucket_ready(self, bucket: int) -> None:
        """Send a bucket of the row, which will not change any more."""
        assert self._row is not None  # since `begin`
        self.sent = True
        self._exchange.post_bucket(self.number, self._sends, bucket, self._row)

    def abort(self) -> None:
        """Forget the row that is being written, of which nothing may be sent yet."""
        self._writer.abort()
        self._row = None

    def complete(self, progress: Progress) -> int:
        """Send what is left of the row, wait, and take the decoded gradients over.

        Returns:
            How many workers have joined.

        Raises:
            MismatchError: another worker is in another place of its loop.
        """
        mine = progress.number(self._plan.passes)
        if self._row is not None:
            self._writer.finish(mine)
            self._row = None
        self._exchange.wait_all(self.number)
        total, tail = self._values.verified(self._exchange.take(self.number))
        for p in self.payload.layout.parameters:
            p.grad = None
        mean = float(self.payload.scatter(total, tail))
        # A second backward of the same forward shall find buffers that do not change.
        self.payload.buffers.remember()
        self._area = total.data_ptr(), total.numel() * total.element_size()
        held = (p.grad for p in self.payload.layout.parameters if p.grad is not None)
        inside = (g._version for g in held if self._lies_inside(g))
        self._version = next(inside, 0)  # it is the same for all
        joined = self._check(progress, mine, mean)
        self.number += 1
        self.sent = False
        return joined

    def _check(self, progress: Progress, mine: float, mean: float) -> int:
        """Refuse an exchange in which the workers have made different things.

        `mean` is the workers' mean of `mine`, weighted by their share of the batch.
        If one of them differs, the mean differs from what at least one of them has, by
        the least weight or more. Workers that have joined count `_JOINED`, and only
        where all have the same share.

        Returns:
            How many workers have joined.
        """
        if abs(mean - mine) < 0.3 * self._least:
            return self._job.size if progress.joined else 0
        joined = round(mean * self._job.size / _JOINED)
        rest = mean * self._job.size - joined * _JOINED
        if progress.joined and joined > 0:
            return joined  # those who train compare what they have made
        if joined and abs(rest - (self._job.size - joined) * mine) < 0.3:
            return joined
        raise MismatchError(
            f"the workers do not take the same steps: in exchange {self.number}, "
            f"worker {self._job.rank} has made {progress.passes} backward pass(es) and "
            f"{progress.steps} optimizer step(s), and others have not; call "
            f"backward() and optimizer.step() equally often on every worker"
        )

    def holds(self, gradient: Tensor) -> bool:
        """Returns whether a gradient is of the last decoded sum, as far as known.

        It lies in it, and nobody has written to it since.
        """
        if gradient.layout is not torch.strided:
            return False
        inside = self._lies_inside(gradient)
        if inside and gradient._version != self._version:
            return False
        return inside or gradient.dtype != self.payload.layout.dtype

    def _lies_inside(self, gradient: Tensor) -> bool:
        begin, size = self._area
        return begin <= gradient.data_ptr() < begin + size

    def done(self, number: int) -> bool:
        """Returns whether an exchange is decoded."""
        return self._exchange.done(number)

    def close(self) -> None:
        """Free the exchange. Collective."""
        self._writer.abort()
        self._exchange.close()


def check_outside(
    optimizer: torch.optim.Optimizer | None, exchanged: set[int], names: dict[int, str]
) -> None:
    """Refuse gradients that the optimizer would use and nobody has exchanged.

    Args:
        optimizer: the user's.
        exchanged: the `id` of every parameter whose gradient is exchanged.
        names: the names of parameters by `id`, as far as they are known.

    Raises:
        ConfigError: with the remedy.
    """
    if optimizer is None:
        return
    lost = [
        f"{names.get(id(p), f'parameter {i} of group {g}')!r} {tuple(p.shape)}"
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
        if id(p) not in exchanged and p.grad is not None
    ]
    if lost:
        raise ConfigError(
            f"the optimizer has gradients that are not exchanged: "
            f"{', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}. These parameters "
            f"required no gradient, or were not among the named_parameters, when the "
            f"optimizer was made distributed; call "
            f"codedgrad.hvd.detach(optimizer) and make it distributed again"
        )


def _share(code: Code, worker: int) -> float:
    """Returns the share of the batch that a worker computes."""
    node = code.work[worker][0]
    return (int(code.tree.stop[node]) - int(code.tree.start[node])) / code.parts
