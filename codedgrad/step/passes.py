"""Passes: forward and backward over micro-batches, into rows.

One item of a worker's work is a node of the summation tree. Its row is

    row(node) = weight_g * payload_g            for a leaf, micro-batch g
              = row(left) + row(right)          else

with weight_g = samples of g / samples of the step, so the root is the batch's mean.
The same node gives the same bits on every worker: data and random numbers come from
(seed, step, g), buffers begin from the step's, and the order of sums is the tree's.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, NonFiniteError
from codedgrad.row import devices
from codedgrad.row.writer import Leaf, RowWriter
from codedgrad.step.boundaries import Boundaries
from codedgrad.step.hooks import PassHooks
from codedgrad.step.rng import seed_pass

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.faults import Injector
    from codedgrad.row.payload import Payload
    from codedgrad.step.context import StepContext
    from codedgrad.step.subject import Subject
    from codedgrad.step.watch import Watch


class RowItem(Protocol):
    """What a pass must know of the item that it computes; see `codedgrad.step.items`.

    Attributes:
        early: whether `bucket_ready` is called with each bucket of the row, most of
            them while the backward of the last micro-batch runs.
    """

    early: bool

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
        finite: whether a loss or gradient that is NaN or infinite is refused.
        overlap: whether rows are written, and sent where wanted, during the backward.
    """

    seed: int = 0
    finite: bool = True
    overlap: bool = True


class Passes:
    """Computes the rows of one model; it knows no network.

    Attributes:
        visits: boundaries met in this step's required items.
        nonfinite: micro-batches with NaN or Inf that were let through.
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
        self._payload = payload
        self._settings = settings
        self._injector = injector
        self._watch = watch
        self._boundaries = Boundaries(subject.modules)
        self._writer = RowWriter(payload, overlap=settings.overlap)
        device = devices.runtime_of(payload.layout.device)
        self._pace = devices.Pace(device) if device is not None else None
        self._spare: dict[int, Tensor] = {}  # partial sums, by depth
        self._durations: deque[float] = deque(maxlen=16)
        self._usual_visits = 0
        self.visits = 0
        self.nonfinite = 0

    @property
    def injector(self) -> Injector | None:
        """What makes this worker slow on purpose."""
        return self._injector

    @property
    def pace(self) -> devices.Pace | None:
        """What keeps the host close to a device."""
        return self._pace

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
        self.visits, self.nonfinite = before.visits, before.nonfinite

    def progress(self) -> float:
        """Returns the share of the required items that was done, 0 to 1.

        It is judged by the number of boundaries.
        """
        if self._usual_visits == 0:
            return 0.0
        return min(1.0, max(0, self.visits - 1) / self._usual_visits)

    def begin(self, step: int) -> None:
        """Prepare for the first pass of a step on this worker."""
        self.visits = 0
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
        tree = self._code.tree
        sums: list[Tensor] = []  # to be added to the last micro-batch, outermost first
        while (left := int(tree.left[node])) >= 0:
            level = depth + len(sums)
            other = self._spare.get(level)
            if other is None:
                other = self._spare[level] = torch.empty_like(out)
            self._node(item, left, other, depth=level + 1)
            item.node_ready(left, other)
            sums.append(other)
            node = int(tree.right[node])
        hooks = PassHooks(self, item, part=node)
        early = item.early and depth == 0
        leaf = Leaf(out, item.context.shards.weight(node), sums, hooks, early)
        self._pass(item.context, node, leaf, hooks)

    def _pass(
        self, context: StepContext, part: int, leaf: Leaf, hooks: PassHooks
    ) -> None:
        """Compute micro-batch `part` into its leaf: leaf.out = its payload + sums."""
        if leaf.weight == 0.0:  # fewer samples than micro-batches
            self._writer.nothing(leaf)
            return
        if self._injector is not None:
            self._injector.resume()
        hooks.check()
        self._payload.buffers.restore()
        self._writer.begin(leaf)
        try:
            with (
                self._watch,
                self._boundaries.watch(hooks),
                torch.enable_grad(),
            ):
                seed_pass(self._settings.seed, context.step, part)
                loss = self._loss(context, part)
                self._watch.loss_computed(loss)
                value = hooks.loss_computed(loss)
                self._writer.backward_begins()
                loss.backward()
                hooks.check()
            self._writer.finish(value)
        finally:
            self._writer.abort()
            for p in self._payload.layout.parameters:
                p.grad = None

    def _loss(self, context: StepContext, part: int) -> Tensor:
        loss: Any = context.loss_fn(*context.shards.fetch(part))
        where = self._where(context.step, part)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(
                f"the loss function must return one number as a tensor, got {got} in "
                f"{where}; reduce it, e.g. with .mean()"
            )
        if not loss.requires_grad:
            raise ConfigError(
                f"the loss of {where} has no gradient; compute it from the model's "
                f"output, without torch.no_grad() or .detach()"
            )
        return loss

    def report_nonfinite(self, suspect: str, step: int, part: int) -> None:
        """Count that the loss or gradient of a micro-batch is not finite.

        Raises:
            NonFiniteError: such values are to be refused.
        """
        self.nonfinite += 1
        if self._settings.finite:
            wire = self._payload.layout.wire
            as_sent = "" if wire == "float32" else f" in {wire}, in which it is sent"
            raise NonFiniteError(
                f"the {suspect} of {self._where(step, part)} is not finite{as_sent}. "
                f"Lower the learning rate or clip; to go on regardless (e.g. with "
                f'GradScaler): CodedGradient(..., on_nonfinite="continue")'
            )

    def check_sum(self, total: Tensor, step: int) -> None:
        """Refuse a decoded sum beyond the range of a float16 wire; all workers do so.

        Raises:
            NonFiniteError: the message names the step.
        """
        layout = self._payload.layout
        if layout.wire != "float16" or not self._settings.finite:
            return
        if not bool(torch.isfinite(total[: layout.gradients]).all()):
            raise NonFiniteError(
                f"the summed gradient of step {step} is beyond 65504, the largest "
                f'float16. Use wire="bfloat16", or scale the loss down'
            )

    def _where(self, step: int, part: int) -> str:
        shard, micro = divmod(part, self._code.micro)
        return f"step {step}, shard {shard}, micro-batch {micro}"
