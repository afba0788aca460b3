"""What belongs to one laying out of a model's rows: payload, passes, exchange, stages.

It is made at the start, and made anew by all workers in the same step wherever the
model has changed: parameters were unfrozen, frozen or replaced, or a tensor turned out
to change in passes that did not travel before.
"""

from __future__ import annotations

import json
import logging
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.errors import ConfigError
from codedgrad.exchange import settle
from codedgrad.exchange.base import CLOSING
from codedgrad.exchange.plan import wired
from codedgrad.groups.code import division, fitting
from codedgrad.groups.seat import Opening, Pacing, take_seat
from codedgrad.job.faults import Injector
from codedgrad.row import tensors
from codedgrad.row.payload import Payload
from codedgrad.step import live, start
from codedgrad.step.check import ValueCheck
from codedgrad.step.held import ValuesHeld
from codedgrad.step.items import WorkList
from codedgrad.step.late import LatePass
from codedgrad.step.micro import tell_of_norm
from codedgrad.step.passes import Passes, PassSettings
from codedgrad.step.patience import Patience
from codedgrad.step.pieces import LOSS, code_of, code_of_state
from codedgrad.step.strangers import refuse_wrapped
from codedgrad.step.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch.nn import Module

    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.groups.seat import Seat
    from codedgrad.job.faults import Faults
    from codedgrad.job.runtime import Runtime
    from codedgrad.job.settings import Approximate, Settings
    from codedgrad.step.subject import Subject

log = logging.getLogger("codedgrad")


class Plan(NamedTuple):
    """What stays the same in all arrangements of one CodedGradient."""

    seat: Seat
    code: Code
    settings: Settings
    policy: Approximate | None
    faults: Faults | None
    late: LatePass
    patience: Patience
    injector: Injector | None

    @property
    def log(self) -> str | Path | None:
        """The folder that this process writes its log into."""
        return self.settings.run.log if self.seat.leads else None


def plan_of(
    job: Runtime, settings: Settings, modules: Sequence[Module], code: Code | None
) -> Plan:
    """Returns what this process is to do. Collective.

    Args:
        job: all processes.
        settings: all settings.
        modules: the model, and others whose state travels with it.
        code: who computes what; None: the default for so many workers.

    Raises:
        ConfigError: settings, code and job do not fit together, or the model cannot be
            exchanged.
    """
    live.check(modules[0])
    run = settings.run
    seat = take_seat(job, run.local_group, modules[0])
    code = fitting(code, seat.workers, seat.group, whole=not run.same_bits)
    code = code_of(code, modules, run)
    if job.rank == 0:
        tell_of_norm(code, modules, run)
    policy = seat.policy(settings.policy)
    faults = start.faults_of(run.faults, seat.workers)
    return Plan(
        seat=seat,
        code=code,
        settings=settings,
        policy=policy,
        faults=faults,
        late=LatePass(code, settings.exchange.window, active=policy is not None),
        patience=Patience(settings.help.patience),
        injector=Injector(faults, seat.worker) if faults else None,
    )


class Arrangement:
    """One laying out.

    Attributes:
        code: who computes what.
        payload: what travels.
        check: compares values and data over all workers.
        watch: looks after what does not travel.
        passes: compute rows.
        exchange: brings rows to others, and decoded sums back.
        own: the stage of the own items.
        help: the stage of the items for others.
        described: what all workers have in common, as (name, value) pairs.
        own_spans: what each own pass of a step computes, in the order of the passes:
            the first micro-batch, and one past the last.
    """

    def __init__(self, plan: Plan, subject: Subject, first_step: int) -> None:
        """Lay out, compare over all workers and open the exchange. Collective.

        Raises:
            ConfigError: the model cannot be exchanged.
            MismatchError: the workers' codes, models or settings differ.
        """
        self._plan, self._subject = plan, subject
        self._end: Any = None
        settings, seat = plan.settings, plan.seat
        code = self.code = code_of_state(plan.code, subject.learned, settings.run)
        subject.check()
        refuse_wrapped(subject.model)
        self.payload = self._lay_out()
        self.described = self._describe(self.payload)
        start.agree(self.payload, self.described)
        start.cut(seat.job, self.payload)
        estimates = plan.policy is not None
        self.watch = Watch(subject, self.payload, first_step)
        self.check = ValueCheck(
            seat.job,
            self.payload,
            subject.kept,
            modes=subject.modes,
            held=ValuesHeld(seat.job, subject.modules, self.watch.changing),
            estimates=estimates,
        )
        passing = PassSettings.of(settings, plan.policy)
        self.passes = Passes(
            subject, code, self.payload, passing, plan.injector, watch=self.watch
        )
        self.exchange = self.open(first_step)
        work = WorkList(code, seat.worker, self.exchange, overlap=passing.overlap)
        pacing = Pacing(plan.late, plan.patience)
        self.own, self.help = seat.stages(self.passes, self.payload, work, pacing)
        self.own_spans = _spans(code, seat, whole=passing.whole)

    def _lay_out(self) -> Payload:
        """Returns the payload of the model as it is now."""
        subject = self._subject
        for places in subject.travelling():
            held = places[0].tensor()
            assert held is not None
            if (own := tensors.writable(held)) is not held:  # one that was expanded
                for place in places:
                    place.holder[place.key] = own
        subject.refresh()
        travelling = subject.travelling()
        named = [(p[0].name, t) for p in travelling if (t := p[0].tensor()) is not None]
        payload = Payload(
            subject.trainable(),
            named,
            workers=self.code.workers,
            settings=wired(self.code, self._plan.settings.exchange),
        )
        payload.buffers.look_up_in(travelling)
        self._key, self._generation = subject.key(), subject.generation
        return payload

    def _describe(self, payload: Payload) -> list[tuple[str, str]]:
        plan = self._plan
        run, exchange = plan.settings.run, plan.settings.exchange
        others, modules = start.others(run, plan.policy), self._subject.describe()
        return start.described(payload, self.code, exchange, others, modules)

    def open(self, first_step: int) -> Exchange:
        """Returns a new exchange. Collective; the one before is closed by then."""
        plan, layout = self._plan, self.payload.layout
        same_bits = plan.settings.run.same_bits
        opening = Opening(first_step, plan.policy, same_bits)
        settings = plan.settings.exchange
        return plan.seat.open_exchange(self.code, layout, settings, opening)

    def fits(self) -> bool:
        """Returns whether the model is still what was laid out; asked in every step.

        Buffers that were assigned anew since are looked up again.
        """
        subject = self._subject
        if not subject.same():
            subject.refresh()
        if subject.generation != self._generation:
            if subject.key() != self._key:
                log.info("the model has changed since the step before")
                if self._plan.policy is not None:
                    log.warning("what the decoder has learned does not fit it any more")
                return False
            self._generation = subject.generation
            self.payload.buffers.look_up_in(subject.travelling())
        return True

    def again(self, step: int, state: dict[str, Any] | None = None) -> Arrangement:
        """Returns the arrangement for the model as it is now. Collective.

        Args:
            step: the first step of the new one.
            state: of a checkpoint, from which it is to go on.

        Raises:
            ConfigError: see the constructor.
            MismatchError: the workers' models differ.
        """
        job = self._plan.seat.job
        log.info("worker %d lays out the model again in step %d", job.rank, step)
        changed = "" if state is not None else " with a model that has changed"
        self.close(f"to begin step {step}{changed}")
        if state is not None:
            self._subject.learned.update(state.get("travelling", ()))
        fresh = Arrangement(self._plan, self._subject, step)
        fresh.passes.go_on_from(self.passes)
        if state is None:
            fresh.payload.weights.go_on_from(self.payload.weights)
        # Passes of the step's first try may have changed what the loss function keeps.
        fresh.check.held.go_on_from(self.check.held)
        if self._plan.policy is not None and state is not None and "decoder" in state:
            layout, saved = fresh.payload.layout, state["decoder"]
            settle.restore(fresh.exchange, fresh.code, layout, saved)
        job.gather(b"", f"to begin step {step} again")  # all have opened theirs
        return fresh

    # ---- workers that come back ----

    def describe_again(self) -> list[tuple[str, str]]:
        """Returns what `described` of the next laying out would be.

        This one stays as it is: it may go on, and look later whether it still fits.
        """
        plan, subject = self._plan, self._subject
        before = self.code, self._key, self._generation
        self.code = code_of_state(plan.code, subject.learned, plan.settings.run)
        try:
            return self._describe(self._lay_out())
        finally:
            self.code, self._key, self._generation = before

    def anew(self, step: int) -> Arrangement:
        """Returns the arrangement over the job's new engine, as at a start. Collective.

        What workers learn together, they all learn again; this one has been closed.
        """
        fresh = Arrangement(self._plan, self._subject, step)
        fresh.passes.go_on_from(self.passes)
        start.when_all_have_opened(self._plan.seat.job, fresh.exchange)
        return fresh

    @property
    def window(self) -> int:
        """How many steps workers may be apart."""
        return self._plan.settings.exchange.window

    def why_not(self) -> str:
        """Returns why no worker could come back into this training; "": it could."""
        if self._plan.seat.group is not None:
            return "the workers are local groups"
        if not self.exchange.outlives:
            return (
                "the training does not outlive a worker; it does with same_bits=True, "
                "back-ups and gradients of 32 bits on CPUs"
            )
        return ""

    def metrics_of(self, tail: NDArray[Any], step: int) -> dict[str, float]:
        """Returns the metrics of a step, see `Metrics.read`."""
        return self.passes.metrics.read(tail, step, self._plan.seat.job)

    def learn(self, step: int, *, weighed: bool) -> None:
        """Let what passes have changed travel, on all workers alike. Collective.

        Args:
            step: the step.
            weighed: whether it has also told the scale of weights, and may have
                changed nothing.

        Raises:
            ConfigError: there is nothing of which all workers would know.
        """
        mine = json.dumps(sorted(self.watch.found)).encode()
        job = self._plan.seat.job
        names: set[str] = set()
        for blob in job.gather(mine, f"to name what step {step} has changed"):
            names.update(json.loads(blob))
        if names <= self._subject.learned:
            if weighed:
                return
            raise ConfigError(
                f"passes of step {step} have changed {sorted(names) or 'a tensor'}, "
                f"which should travel already; please report this"
            )
        if moved := sorted(names - {LOSS}):
            log.info("these tensors change in passes and travel now: %s", moved)
        self._subject.learned |= names

    def close(self, why: str = CLOSING) -> None:
        """End the exchange and take the hooks off the model. Collective.

        Args:
            why: completes the sentence "worker 0 waits ...".

        Raises:
            MismatchError: the workers have made different numbers of steps.
        """
        self.exchange.close(why)
        self.passes.close()
        if self._end is not None:
            self._end.detach()

    def end_with(self, owner: object) -> None:
        """Take the hooks off the model when `owner` is dropped without `close`."""
        self._end = weakref.finalize(owner, self.passes.close)
        self._end.atexit = False

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        state: dict[str, Any] = {}
        if self._subject.learned:
            state["travelling"] = sorted(self._subject.learned)
        if self._plan.policy is not None:
            layout, code = self.payload.layout, self.code
            state["decoder"] = settle.checkpoint(self.exchange, code, layout)
        return state


def _spans(code: Code, seat: Seat, *, whole: bool) -> list[tuple[int, int]]:
    """Returns the micro-batches of this process's own passes, pass by pass."""
    nodes = list(code.work[seat.worker][: code.required[seat.worker]])
    tree = code.tree
    if (group := seat.group) is not None:
        nodes = [
            own
            for node in nodes
            for own in division(tree, node, group.size)[group.member]
        ]
    spans = [(int(tree.start[node]), int(tree.stop[node])) for node in nodes]
    if whole:
        return spans
    return [(leaf, leaf + 1) for begin, end in spans for leaf in range(begin, end)]
