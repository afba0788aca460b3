"""The exchange of the drop-in: `p.grad` becomes its mean over all workers.

    begin      opens the exchange and a row, unless it is decoded without this worker
    complete   writes the rest of the row, waits, and takes the decoded mean over

Between the two, a backward may run, which sends buckets of the row.

Workers that do not do the same would drift apart, or answer each other's exchanges. The
place of the loss in the row, which is of no use here, therefore carries a number that
tells how many passes and steps a worker has made (`Progress`).
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from codedgrad.errors import ConfigError, MismatchError
from codedgrad.exchange import settle
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import runtime
from codedgrad.row.payload import Payload
from codedgrad.row.writer import Leaf, RowWriter
from codedgrad.step import start
from codedgrad.step.check import ValueCheck
from codedgrad.step.journal import Journal
from codedgrad.step.plan import JOINED, Progress, share_of
from codedgrad.step.strangers import refuse_wrapped
from codedgrad.step.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from codedgrad.exchange.base import RowBuffer
    from codedgrad.row.tensors import Place
    from codedgrad.step.plan import DropInPlan, Trained


log = logging.getLogger("codedgrad")


class GradientMean:
    """Exchanges of the gradients, and buffers, of what one optimizer trains.

    Attributes:
        number: of the exchange that comes next, or is under way.
        payload: what travels.
        part: the first micro-batch that this worker computes.
        journal: times the exchanges and reports them.
        sent: whether a part of the row that is being written is sent.
    """

    def __init__(
        self, job: runtime.Runtime, trained: Trained, plan: DropInPlan
    ) -> None:
        """Open the exchange. Collective."""
        self._job, self._plan = job, plan
        settings, code, model = plan.settings.exchange, plan.code, trained.model
        self._policy = plan.estimates(job.size)
        if model is not None:
            refuse_wrapped(model)
        self._subject = None if model is None else Subject(model)
        self.payload = self._lay_out(trained, job.size)
        others = [
            ("backward_passes_per_step", str(plan.passes)),
            ("seed", str(plan.settings.run.seed)),
            ("overlap", str(settings.overlap)),
            ("multiply", str(plan.multiply)),
            ("policy", str(self._policy or "exact")),
        ]
        modules = [] if self._subject is None else self._subject.describe()
        mine = start.described(self.payload, code, settings, others, modules)
        start.agree(self.payload, mine)
        start.cut(job, self.payload)
        self._named = trained.named
        self._values = ValueCheck(
            job,
            self.payload,
            self._before_the_forward,
            estimates=self._policy is not None,
        )
        self._sampler = trained.sampler
        self._exchange = EngineExchange(
            job,
            code,
            self.payload.layout,
            settings,
            approximate=self._policy,
            deputies=False,
        )
        reporter = start.reporter_into(plan.settings.run.log, job.rank)
        self.journal = Journal(code, self._exchange, reporter)
        self._sends = self._exchange.row_of(job.rank, 0)
        shares = [share_of(code, worker) for worker in range(code.workers)]
        self._weight, self._least = shares[job.rank], min(shares)
        self.part = int(code.tree.start[code.work[job.rank][0]])
        self.number = 0
        self._progress = Progress()
        self._row: RowBuffer | None = None
        self.sent = False
        self._memory: StorageWeakRef | None = None  # of the last decoded gradients
        self._version = 0  # of the gradients in it
        self._others: dict[int, tuple[Callable[[], Any], int]] = {}  # beside it, by id
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
        self, *, own: bool, progress: Progress, first: Tensor | None = None
    ) -> None:
        """Begin an exchange.

        Args:
            own: send a row, unless the exchange is decoded without it.
            progress: what this worker will have done when the exchange is complete.
            first: the parameter with the first gradient of a backward that runs and
                completes `p.grad`; None: it is complete.

        Raises:
            ConfigError: there is no row to send, and others wait for it.
        """
        self.journal.begins(self.number)
        self.journal.computed(needed=own)
        self._progress = progress
        if progress.joined:
            self._values.begin_joined(self.number)
        elif self._policy is None:
            self._values.begin_drop_in(self.number, self._sampler)
        else:  # an estimate of the progress numbers of all would say nothing
            made = progress.passes, progress.steps
            self._values.begin_drop_in(self.number, self._sampler, made)
        self.journal.opened(self._exchange.begin(self.number))
        decoded = self._exchange.done(self.number)
        if not own and self._policy is not None and not decoded:
            raise ConfigError(
                f"a batch of exchange {self.number} was not computed in full, since "
                f"that seemed to be decoded already, and is waited for; leave out "
                f"sampler=, or use catch_up=False, in a loop whose steps do not take "
                f"one batch for each pass"
            )
        if not own or (decoded and self._policy is None):
            return  # where others settle for estimates, a late row still teaches them
        self._row = self._exchange.row_buffer()
        self._writer.begin(Leaf(self._row.tensor, self._weight, (), self, True))
        if first is not None:
            self._writer.backward_begins(first)

    def bucket_checked(self, finite: bool) -> None:
        """Let NaN and Inf through, as Horovod and DDP do."""

    def row_flagged(self, flag: Tensor) -> None:
        """Let NaN and Inf through, without a wait for the device."""

    def bucket_ready(self, bucket: int) -> None:
        """Send a bucket of the row, which will not change any more."""
        assert self._row is not None  # since `begin`
        self.sent = True
        self._exchange.post_bucket(self.number, self._sends, bucket, self._row)

    def abort(self) -> None:
        """Forget the row that is being written, of which nothing may be sent yet."""
        self._writer.abort()
        self._row = None

    def complete(self) -> int:
        """Send what is left of the row, wait, and take the decoded gradients over.

        Returns:
            How many workers have joined.

        Raises:
            MismatchError: another worker is in another place of its loop.
        """
        mine = self._progress.number(self._plan.passes)
        self.journal.computed()
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
        self._note_gradients()
        joined = 0 if self._policy is not None else self._check(mine, mean)
        self.journal.decoded()
        self.number += 1
        self.sent = False
        return joined

    def _note_gradients(self) -> None:
        """Note which gradients are the decoded ones, and their versions."""
        parameters = self.payload.layout.parameters
        held = [p.grad for p in parameters if p.grad is not None]
        # Views of one vector, but for those of another type than its.
        own = self.payload.layout.own_type or self.payload.layout.dtype
        first = next((g for g in held if g.dtype == own), None)
        self._memory, self._version = None, 0
        if first is not None:
            # Not its address: once zero_grad() has freed the memory, the allocator may
            # give it to a gradient of the user's own. No storage has the name of this
            # one for as long as the weak reference lives.
            self._memory = StorageWeakRef(first.untyped_storage())
            self._version = first._version  # it is the same for all
        others = (g for g in held if not self._lies_inside(g))
        self._others = {id(g): (weakref.ref(g), g._version) for g in others}

    def _check(self, mine: float, mean: float) -> int:
        """Refuse an exchange in which the workers have made different things.

        `mean` is the workers' mean of `mine`, weighted by their share of the batch.
        If one of them differs, the mean differs from what at least one of them has, by
        the least weight or more. Workers that have joined count `JOINED`, and only
        where all have the same share.

        Returns:
            How many workers have joined.
        """
        progress = self._progress
        if abs(mean - mine) < 0.3 * self._least:
            return self._job.size if progress.joined else 0
        joined = round(mean * self._job.size / JOINED)
        rest = mean * self._job.size - joined * JOINED
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
        if self._lies_inside(gradient):
            return gradient._version == self._version
        known, version = self._others.get(id(gradient), (_nothing, 0))
        return known() is gradient and gradient._version == version

    def _lies_inside(self, gradient: Tensor) -> bool:
        memory = self._memory
        if memory is None:
            return False
        return bool(gradient.untyped_storage()._cdata == memory.cdata)

    def done(self, number: int) -> bool:
        """Returns whether an exchange is decoded."""
        return self._exchange.done(number)

    # ---- see `Memory` in `codedgrad.step.counts` ----

    def learned(self) -> dict[str, Any]:
        """Returns what the decoder of estimates has learned, for a checkpoint."""
        if self._policy is None:
            return {}
        layout = self.payload.layout
        return settle.checkpoint(self._exchange, self._plan.code, layout)

    def learn(self, saved: dict[str, Any]) -> None:
        """Go on from what `learned` has returned, if it fits."""
        if self._policy is None or not saved:
            return
        try:
            layout = self.payload.layout
            settle.restore(self._exchange, self._plan.code, layout, saved)
        except ConfigError as error:
            log.warning("the decoder begins anew: %s", str(error).split(";")[0])

    def leave(self) -> None:
        """End without the others, after an error."""
        self._writer.abort()
        self.journal.close()

    def close(self) -> None:
        """Free the exchange. Collective."""
        self.leave()
        self._exchange.close()


def _nothing() -> None:
    """Return what a reference to no gradient gives."""


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
