"""What one worker computes in one evaluation: its own parts, then those of the late."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from codedgrad.data.seeding import seed_pass
from codedgrad.inference import row, sums
from codedgrad.inference.helping import Helping
from codedgrad.inference.outbox import Outbox
from codedgrad.inference.parts import Part, middle_of
from codedgrad.step.boundaries import Abandoned, Boundaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from codedgrad.inference.compare import Own
    from codedgrad.inference.guard import Guard
    from codedgrad.inference.parts import Shares
    from codedgrad.inference.progress import Bar
    from codedgrad.inference.row import Decoded
    from codedgrad.inference.samples import Batches
    from codedgrad.inference.session import Session
    from codedgrad.inference.sums import Schema, Values

_PATIENCE_S = 0.01  # the least; rows of parts that are done may be under way so long
_EVALUATION = 0xE7A1  # tells the random numbers of an evaluation from a training's
_LAST_RESORT = 3  # times that rows were lacked, until own parts are computed again


class Aids(NamedTuple):
    """What a worker needs besides the function, for one evaluation.

    Attributes:
        batches: reads the data.
        boundaries: calls back between the modules of a forward.
        guard: looks that the models stay as they are.
        bar: shows how far all have come.
        own: knows the marks of this worker's rows.
    """

    batches: Batches
    boundaries: Boundaries
    guard: Guard
    bar: Bar
    own: Own


@contextmanager
def boundaries_of(models: Sequence[nn.Module]) -> Iterator[Boundaries]:
    """Inside, forwards of the models can be left between two modules."""
    modules = dict.fromkeys(m for model in models for m in model.modules())
    # A scripted module has no hooks of Python's.
    known = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    boundaries = Boundaries(known)
    try:
        yield boundaries
    finally:
        boundaries.remove()


class Work:
    """One evaluation, as this worker takes part in it.

    Attributes:
        schema: what the metrics are; None before the first batch.
        each: the results by sample of the parts computed here, by part.
        done: the number of batches that were computed here.
    """

    def __init__(
        self, session: Session, shares: Shares, fn: Callable[..., Any], aids: Aids
    ) -> None:
        """Take who computes what, and the function that is called with each batch."""
        self._session, self._shares, self._fn, self._aids = session, shares, fn, aids
        self._marks = aids.own.marks
        self._too_large: tuple[int, Values] | None = None
        self._form = row.Format(0, 0, 0)
        self._outbox = Outbox(session, self._form, lambda: False)
        self.schema: Schema | None = None
        self.each: dict[int, Values] = {}
        self.done = 0

    def attempt(self, patience: float) -> Decoded:
        """Returns the decoded row, which may say that rows need more lines.

        Raises:
            WorkerError: the job failed.
        """
        session, parts = self._session, self._shares.parts
        exchange, number = session.exchange, session.number
        self._form = row.Format(session.lines, session.tree.parts, len(parts))
        lasts, workers = self._shares.lasts(), session.job.size

        def idle() -> bool:  # and nothing of this object, which would be a cycle
            without = len(lasts) < workers - 1
            return without or any(exchange.has(number, node) for node in lasts)

        self._outbox = Outbox(session, self._form, idle)
        exchange.late = lambda: self._shares.late(self._has)
        exchange.begin(number)
        if not exchange.forwarded(number):
            with session.job.computing():
                try:
                    self._own()
                    self._compute_missing(self._of_the_lost())
                    self._help(patience)
                except _Decoded:
                    pass
        exchange.wait_all(number, self._help_out)
        exchange.late = None
        self._aids.guard.check(0, parts[-1].stop)  # a part that was left, too
        return self._form.read(session.take())

    def _has(self, node: int) -> bool:
        return self._session.exchange.has(self._session.number, node)

    # ---- own parts, and those of others ----

    def _own(self) -> None:
        session = self._session
        if session.injector is not None:
            own = sum(self._count(i) for i in self._shares.own)
            session.injector.begin(session.number, session.batch_s * own)
        session.forget_times()
        for i in self._shares.own:
            if not self._has(self._shares.parts[i].node):
                self._one(i)
        self._outbox.flush()

    def _help(self, setting: float) -> None:
        session, shares = self._session, self._shares
        if not shares.others:
            return
        patience = session.patience(setting)
        helping = Helping(shares, session.job.rank, session.job.size)
        usual_s = session.batch_s
        part_s = usual_s * max(map(self._count, shares.others))
        wait_s = max(_PATIENCE_S, patience.seconds(part_s))
        while not session.exchange.wait(session.number, wait_s):
            now, late_s = time.monotonic(), usual_s * (1.0 + patience.now)
            part, missing = helping.next(self._has, now, late_s)
            if not missing:
                return
            wait_s = 0.0
            if part is None:
                wait_s = min(max(1e-3, 0.1 * part_s), 0.05)
                continue
            self._one(part, own=False)

    def _help_out(self, times: int) -> None:
        """Compute what workers lack that had arrived here; see `Exchange.wait_all`."""
        numbers = [*self._shares.others, *self._of_the_lost()]
        if times >= _LAST_RESORT:
            numbers = sorted({*numbers, *self._shares.own})
        try:
            with self._session.job.computing():
                self._compute_missing(numbers)
        except _Decoded:
            return

    def _compute_missing(self, numbers: Sequence[int]) -> None:
        """Compute those of these parts that have not come.

        Raises:
            _Decoded: the evaluation is decoded.
        """
        for i in numbers:
            if not self._has(self._shares.parts[i].node):
                self._one(i, own=False)

    def _of_the_lost(self) -> list[int]:
        """Returns parts of workers that are lost; each worker begins at another one."""
        lost, job = set(self._session.exchange.lost()), self._session.job
        if not lost:
            return []
        found = [i for i, who in enumerate(self._shares.owners) if lost.issuperset(who)]
        first = len(found) * job.rank // job.size
        return found[first:] + found[:first]

    def _count(self, number: int) -> int:
        part = self._shares.parts[number]
        return part.stop - part.first

    # ---- one part ----

    def _one(self, number: int, *, own: bool = True) -> None:
        """Compute a part and send its row, unless others do before.

        Raises:
            _Decoded: the evaluation is decoded.
        """
        part = self._shares.parts[number]
        begin = time.monotonic()
        try:
            values = self._values(number, own=own)
        except Abandoned:
            if self._session.exchange.done(self._session.number):
                raise _Decoded from None
            return
        self._aids.guard.check(part.first, part.stop)
        self._session.note_part(time.monotonic() - begin, part.stop - part.first)
        schema = self.schema
        assert schema is not None
        if any(not entry.summed for entry in schema):
            self.each[number] = values
        need = row.lines_for(schema, self._form.parts)
        if need > self._form.lines:
            self._too_large = number, values
            self._session.post(
                self._session.tree.root, self._form.too_small(need, self._marks)
            )
            raise _Decoded
        payload = self._form.write(
            schema, values, part=number, worker=self._session.job.rank
        )
        marks = self._marks.with_metrics(sums.text_of(schema))
        self._outbox.add(part.node, payload, marks)
        if not own:
            self._outbox.flush()

    def _values(self, number: int, *, own: bool) -> Values:
        """Returns the sums of a part.

        Raises:
            Abandoned: its row has come from another worker.
        """
        if self._too_large is not None and self._too_large[0] == number:
            return self._too_large[1]
        part = self._shares.parts[number]
        return self._sum(part.first, part.stop, _Watch(self, part), own=own)

    def _sum(self, first: int, stop: int, watch: _Watch, *, own: bool) -> Values:
        """Returns the sums of a run of batches, in the order of `parts`."""
        if stop - first == 1:
            return self._batch(first, watch, own=own)
        middle = middle_of(first, stop)
        left = self._sum(first, middle, watch, own=own)
        return sums.add(left, self._sum(middle, stop, watch, own=own))

    def _batch(self, number: int, watch: _Watch, *, own: bool) -> Values:
        watch.check()
        arguments = self._aids.batches.fetch(number, own=own, between=watch.check)
        seed_pass(_EVALUATION, 0, number)
        injector = self._session.injector
        if injector is not None:
            injector.resume()
        with self._aids.boundaries.watch(watch):
            result = self._fn(*arguments)
            watch.visit()
        schema, values = sums.read(result, number)
        if self.schema is None:
            self.schema = schema
        sums.check_same(self.schema, schema, number)
        self.done += 1
        self._aids.bar.show(self._session, self._shares, self.done if own else None)
        return values


class _Decoded(BaseException):
    """The evaluation is decoded; nothing more is to be computed."""


class _Watch:
    """Looks at every boundary whether a part is still needed; a `Visitor`."""

    def __init__(self, work: Work, part: Part) -> None:
        session = work._session
        self._exchange, self._number = session.exchange, session.number
        self._injector, self._node = session.injector, part.node
        self._look = work._outbox.look

    def check(self) -> None:
        """Raises `Abandoned` where the part's row is here, or all rows."""
        if self._exchange.done(self._number) or self._exchange.has(
            self._number, self._node
        ):
            raise Abandoned
        self._look()

    def visit(self) -> None:
        """At a boundary: be slow if told to, and look whether to go on."""
        self.check()
        if self._injector is not None:
            self._injector.boundary(self.check)
