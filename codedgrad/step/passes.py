"""Passes: forward and backward, into rows.

One item of a worker's work is a node of the summation tree. Its row is

    row(node) = weight_g * payload_g            for a leaf, micro-batch g
              = row(left) + row(right)          else

with weight_g = samples of g / samples of the step, so the root is the batch's mean
(a loss function may give the weight itself, see `codedgrad.step.loss`). A *whole* pass
computes a node as if it were a leaf: all of its micro-batches in one forward and one
backward, which differs by rounding only, as long as the model treats samples alike.

The same node gives the same bits on every worker: data and random numbers come from
(seed, step, node), buffers begin from the step's, and the order of sums is the tree's.
"""

from __future__ import annotations

import functools
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from codedgrad.data.seeding import seed_pass
from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.row import devices
from codedgrad.row.writer import Leaf, RowWriter
from codedgrad.step.boundaries import Boundaries
from codedgrad.step.finite import NonFinite
from codedgrad.step.hooks import PassHooks
from codedgrad.step.loss import Batches, Loss, loss_of, refuse_twice
from codedgrad.step.metrics import Metrics
from codedgrad.step.nodes import Node, Nodes, place_of
from codedgrad.step.pieces import LOSS, own_is_whole
from codedgrad.step.rehearsal import Asked, Rehearsal

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.job.faults import Injector
    from codedgrad.job.settings import Approximate, Settings
    from codedgrad.row.payload import Payload
    from codedgrad.step.context import StepContext
    from codedgrad.step.subject import Subject
    from codedgrad.step.watch import Watch


_PACED_STEPS = 64  # after a step that this worker was late in


class RowItem(Protocol):
    """What a pass must know of the item that it computes; see `codedgrad.step.items`.

    Attributes:
        early: whether `bucket_ready` is called with each bucket of the row, most of
            them while the backward of the last micro-batch runs.
        may_fail: whether `failed` may say yes.
    """

    early: bool
    may_fail: bool

    @property
    def context(self) -> StepContext:
        """The step."""

    @property
    def node(self) -> int:
        """The node of the summation tree."""

    @property
    def out(self) -> Tensor:
        """The row to be written, [count]."""

    def needless(self) -> bool:
        """Returns whether the pass may be abandoned; asked at every boundary."""

    def failed(self, error: Exception) -> bool:
        """Hears that the pass has failed; returns whether only the item is given up.

        The job ends with the error otherwise.
        """

    def bucket_ready(self, bucket: int) -> None:
        """Hears once of each bucket that is final, if `early`."""

    def node_ready(self, node: int, value: Tensor) -> None:
        """Hears of every node below the item's that is final, and of its row [count].

        The value stays as it is until a node above it is final.
        """


class PassSettings(NamedTuple):
    """How passes are made.

    Attributes:
        seed: seed of the random numbers.
        finite: whether a loss or gradient that is NaN or infinite ends the job.
        finite_sum: whether a decoded sum that is infinite does.
        overlap: whether rows are written, and sent where wanted, during the backward.
        whole: whether an item is one pass, and not one pass for each micro-batch.
        exact: whether every step is; estimates know no weights of loss functions.
        choose: whether helpers take whole shards where a loss function wants that.
        tell: whether it is told where the loss of a batch is no mean over its parts.
    """

    seed: int = 0
    finite: bool = True
    finite_sum: bool = True
    overlap: bool = True
    whole: bool = False
    exact: bool = True
    choose: bool = False
    tell: bool = False

    @classmethod
    def of(cls, settings: Settings, policy: Approximate | None) -> PassSettings:
        """Returns what the settings of a `CodedGradient` say of passes.

        With on_nonfinite="refuse", owners leave rows out that are not finite. Where
        every step is exact they cannot, and such a row ends the job, as with "raise".

        Args:
            settings: all settings.
            policy: when a step here may end with an estimate; None: never.
        """
        chosen = settings.on_nonfinite()
        return cls(
            seed=settings.run.seed,
            finite=chosen == "raise" or (chosen == "refuse" and policy is None),
            finite_sum=chosen != "continue",
            overlap=settings.exchange.overlap,
            whole=own_is_whole(settings.run),
            exact=policy is None,
            choose=settings.run.pieces == "auto" and not settings.run.same_bits,
            tell=settings.run.pieces == "auto",
        )


class Passes:
    """Computes the rows of one model; it knows no network.

    Attributes:
        visits: boundaries met in this step's required items.
        nonfinite: what becomes of micro-batches with NaN or Inf.
        metrics: of the passes, and those of a decoded sum.
    """

    def __init__(
        self,
        subject: Subject,
        code: Code,
        payload: Payload,
        settings: PassSettings,
        injector: Injector | None = None,
        *,
        watch: Watch,
    ) -> None:
        """Attach the hooks to the model; `watch` looks after what does not travel.

        `injector` makes this worker slow on purpose.
        """
        self._code = code
        self._nodes = Nodes(code)
        self._payload = payload
        self._settings = settings
        self._injector = injector
        self._watch = watch
        self.metrics = Metrics(payload, finite=settings.finite)
        slowed = injector is not None
        self._boundaries = Boundaries(subject.modules, slowed=slowed)
        self._batches = Batches()
        self._writer = RowWriter(payload, overlap=settings.overlap)
        self._in_place = self._writer.in_place
        self._rehearsal = Rehearsal(subject, payload, Asked.of(code, settings))
        self._first = False  # the pass to come is the step's first own one
        self._begun: int | None = None  # the first step of these passes
        device = devices.runtime_of(payload.layout.device)
        self._pace = devices.Pace(device) if device is not None else None
        self._paced_steps = 0  # so many steps will be paced still
        self._spare: dict[int, Tensor] = {}  # partial sums, by depth
        self._durations: deque[float] = deque(maxlen=16)
        self._usual_visits = 0
        self.visits = 0
        self.nonfinite = NonFinite(
            payload,
            functools.partial(place_of, code),  # a method would make a cycle
            refuse=settings.finite,
            refuse_sum=settings.finite_sum,
            waits=settings.finite and not settings.exact,
        )

    @property
    def injector(self) -> Injector | None:
        """What makes this worker slow on purpose."""
        return self._injector

    @property
    def on_host(self) -> bool:
        """Whether nobody has to wait for what a pass computes."""
        return self._payload.layout.on_host

    @property
    def whole(self) -> bool:
        """Whether an item is one pass."""
        return self._settings.whole

    @property
    def pace(self) -> devices.Pace | None:
        """What keeps the host close to a device; None while this worker is not late."""
        return self._pace if self._paced_steps else None

    @property
    def usual_s(self) -> float:
        """Median seconds of this worker's recent complete required items."""
        return median(self._durations) if self._durations else 0.0

    def note_duration(self, seconds: float) -> None:
        """Count one complete round of required items."""
        self._durations.append(seconds)
        self._usual_visits = self.visits

    def go_on_from(self, before: Passes) -> None:
        """Take over the counts and times of the passes of an earlier laying out."""
        self._durations, self._usual_visits = before._durations, before._usual_visits
        self.visits, self.nonfinite.count = before.visits, before.nonfinite.count
        self._rehearsal.go_on_from(before._rehearsal)

    def progress(self) -> float:
        """Returns the share of the required items that was done, 0 to 1.

        It is judged by the number of boundaries.
        """
        if self._usual_visits == 0:
            return 0.0
        return min(1.0, max(0, self.visits - 1) / self._usual_visits)

    def note_late(self) -> None:
        """Hear that the step was decoded before this worker had done its part.

        For a while passes keep the host close to the device, so that they can be left
        early. A worker that is not late does not pay for that.
        """
        self._paced_steps = _PACED_STEPS

    def begin(self, step: int) -> None:
        """Prepare for the first pass of a step on this worker."""
        self._paced_steps = max(0, self._paced_steps - 1)
        self.visits, self._first = 0, True
        self._begun = step if self._begun is None else self._begun
        self.nonfinite.begin()
        if self._injector is not None:
            self._injector.begin(step, self.usual_s)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._boundaries.remove()
        self._writer.close()

    def row(self, item: RowItem) -> None:
        """Compute the row of `item.node` into `item.out`.

        This seeds the generators of random numbers, so it is called inside
        `rng.own_rng`.

        Raises:
            Abandoned: the item became needless at a module boundary. What has been
                sent by then is right; the rest of the row never comes.
            NonFiniteError: the loss or gradient is not finite; the message names the
                step, shard and micro-batch.
            ConfigError: the loss has no gradient, or a gradient is sparse.
        """
        self._node(item, item.node, item.out, depth=0)

    def _node(self, item: RowItem, node: int, out: Tensor, *, depth: int) -> None:
        """Compute the row of `node`, which lies `depth` below the item's own node."""
        at = self._nodes.at(node)
        sums: list[Tensor] = []  # to be added to the last micro-batch, outermost first
        while at.left >= 0 and not self._settings.whole:
            level = depth + len(sums)
            # The outermost sum lies where the row will be, if it can be added to there.
            other = out if self._in_place and not sums else self._spare.get(level)
            if other is None:
                other = self._spare[level] = torch.empty_like(out)
            self._node(item, at.left, other, depth=level + 1)
            item.node_ready(at.left, other)
            sums.append(other)
            node = at.right
            at = self._nodes.at(node)
        hooks = PassHooks(self, item, node)
        early = item.early and depth == 0
        share = item.context.shards.weight(*at.span)
        leaf = Leaf(out, share, sums, hooks, early)
        self._pass(item.context, at, leaf, hooks)

    def _pass(
        self, context: StepContext, at: Node, leaf: Leaf, hooks: PassHooks
    ) -> None:
        """Compute a node in one pass into its leaf: leaf.out = its payload + sums."""
        if leaf.weight == 0.0:  # fewer samples than micro-batches
            self.metrics.nothing()
            self._writer.nothing(leaf)
            return
        if self._injector is not None:
            self._injector.resume()
        hooks.check()
        place = f"step {context.step}, {at.title}"
        self._payload.buffers.begin_pass()
        self._writer.begin(leaf)
        try:
            with (
                # The watch ends first: it puts flags back that hooks depend on.
                self._boundaries.watch(hooks),
                self._watch,
                hooks,
                torch.enable_grad(),
            ):
                seed_pass(self._settings.seed, context.step, hooks.node)
                loss, weight, metrics = self._loss(context, at, place, hooks)
                if weight is not None:
                    samples = context.shards.total
                    leaf.weight = self._payload.weights.leaf(weight, samples)
                    if weight and self._payload.weights.measuring:
                        self._payload.tail.moved = True  # it is computed again
                self._payload.tail.weighted = weight is not None
                if self._rehearsal.found:  # the step is computed again
                    self._payload.tail.moved = True
                    self._watch.found.add(LOSS)
                if weight != 0.0:
                    self._watch.loss_computed(loss)
                    value = hooks.loss_computed(loss)
                    self._writer.backward_begins()
                    loss.backward()
                    hooks.check()
            counts = context.shards.samples(*at.span)
            self.metrics.note(
                metrics, counts if weight is None else weight, context.step, place
            )
            if weight != 0.0:
                self._writer.finish(value)
            else:  # the loss function says that there is nothing to learn from
                self._writer.abort()
                self._writer.nothing(leaf)
        finally:
            self._writer.abort()
            objects.assign_all(self._payload.layout.parameters, "grad", None)

    def _loss(
        self, context: StepContext, at: Node, place: str, hooks: PassHooks
    ) -> Loss:
        # Samples may take long: a helper must not read what nobody needs any more.
        batch = context.shards.fetch(*at.span, between=hooks.leave_if_needless)
        if self._first:
            self._first = False
            self._rehearsal.look(context, at.span, batch, place)
            self._boundaries.begin_again()
            # What a backward of the loss function's own has left there is no gradient.
            objects.assign_all(self._payload.layout.parameters, "grad", None)
        returned = self._batches.call(context.loss_fn, batch)
        layout = self._payload.layout
        none_left = objects.all_none(layout.parameters, "grad")  # as before the pass
        if not none_left and context.step == self._begun:
            refuse_twice(returned, layout.names, layout.parameters, place)
        loss = loss_of(returned, place)
        self._rehearsal.weighed = self._rehearsal.weighed or loss.weight is not None
        more = loss.weight is not None or loss.metrics is not None
        if more and not self._settings.exact:
            beside = "metrics" if loss.weight is None else "weight"
            raise ConfigError(
                f"the loss function returned (loss, {beside}) in {place}, and "
                f"estimates know no weights and no metrics yet: use "
                f'policy="exact", or return the loss alone'
            )
        return loss
