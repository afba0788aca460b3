"""Passes: forward and backward over micro-batches, into rows.

One item of a worker's work is a node of the summation tree. Its row is

    row(node) = weight_g * payload_g            for a leaf, micro-batch g
              = row(left) + row(right)          else

with weight_g = samples of g / samples of the step, so the root is the batch's mean.
The same node gives the same bits on every worker: data and random numbers come from
(seed, step, g), buffers begin from the step's, and the order of sums is the tree's.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, NonFiniteError
from codedgrad.row import devices
from codedgrad.row.writer import RowWriter
from codedgrad.step.boundaries import Abandoned, Boundaries
from codedgrad.step.rng import seed_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from codedgrad.codes import Code
    from codedgrad.data import StepShards
    from codedgrad.faults import Injector
    from codedgrad.row.layout import Payload


class Passes:
    """Computes rows for one model; knows no network."""

    def __init__(
        self,
        model: torch.nn.Module,
        code: Code,
        payload: Payload,
        *,
        seed: int,
        injector: Injector | None,
        finite: bool,
        overlap: bool = True,
    ) -> None:
        """`finite`: refuse a loss or gradient that is NaN or infinite.

        `overlap`: write rows, and send them where asked, while the backward runs.
        """
        self._code = code
        self._payload = payload
        self._seed = seed
        self._injector = injector
        self._finite = finite
        self._boundaries = Boundaries(model)
        self._writer = RowWriter(payload, overlap=overlap)
        device = devices.runtime_of(payload.device)
        self._pace = devices.Pace(device) if device is not None else None
        self._spare: dict[int, Tensor] = {}
        self._durations: deque[float] = deque(maxlen=16)
        self._visits = 0  # boundaries met in this step's required items
        self._usual_visits = 0
        self.nonfinite = 0  # micro-batches let through with finite=False

    @property
    def usual_s(self) -> float:
        """Median seconds of this worker's recent complete required items."""
        return median(self._durations) if self._durations else 0.0

    def note_duration(self, seconds: float) -> None:
        """Count one complete round of required items."""
        self._durations.append(seconds)
        self._usual_visits = self._visits

    def progress(self) -> float:
        """Share of the required items that was done, judged by boundaries; 0 to 1."""
        if self._usual_visits == 0:
            return 0.0
        return min(1.0, max(0, self._visits - 1) / self._usual_visits)

    def begin(self, step: int) -> None:
        """Before the first pass of a step on this worker."""
        self._visits = 0
        if self._injector is not None:
            self._injector.begin(step, self.usual_s)

    def close(self) -> None:
        """Take the hooks off the model."""
        self._boundaries.remove()
        self._writer.close()

    def row(
        self,
        node: int,
        out: Tensor,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        step: int,
        needless: Callable[[], bool],
        send: Callable[[int], None] | None = None,
        done: Callable[[int, Tensor], None] | None = None,
        depth: int = 0,
    ) -> None:
        """Compute the row of `node` into `out`; `depth` below the item's own node.

        Seeds the generators of random numbers: to be called inside `rng.own_rng`.

        `send` is called once with each bucket of `out` that is done, most of them
        while the backward of the last micro-batch runs. `done` is called with every
        node below that is finished before, and its value, which stays until a node
        above it is.

        Raises:
            Abandoned: `needless` became true at a module boundary. What has been sent
                by then is right, the rest of the row never comes.
            NonFiniteError: names the step, shard and micro-batch.
            ConfigError: the loss has no gradient, or a gradient is sparse.
        """
        tree = self._code.tree
        sums: list[
            Tensor
        ] = []  # what the last micro-batch is added to, outermost first
        while (left := int(tree.left[node])) >= 0:
            level = depth + len(sums)
            other = self._spare.get(level)
            if other is None:
                other = self._spare[level] = torch.empty_like(out)
            self.row(
                left,
                other,
                loss_fn,
                shards,
                step,
                needless,
                done=done,
                depth=level + 1,
            )
            if done is not None:
                done(left, other)
            sums.append(other)
            node = int(tree.right[node])
        self._pass(node, out, sums, loss_fn, shards, step, needless, send)

    def _pass(
        self,
        part: int,
        out: Tensor,
        sums: Sequence[Tensor],
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        step: int,
        needless: Callable[[], bool],
        send: Callable[[int], None] | None,
    ) -> None:
        """One micro-batch; out = its leaf + sums."""
        weight = shards.weight(part)
        if weight == 0.0:  # fewer samples than micro-batches
            self._writer.nothing(out, sums, send)
            return
        if self._injector is not None:
            self._injector.resume()
        check = self._checker(needless)
        check()
        self._payload.restore_buffers()
        finite = _Finite(lambda what: self._not_finite(what, step, part))
        self._writer.begin(out, weight, sums, finite.check, send)
        try:
            with self._boundaries.watch(check), torch.enable_grad():
                seed_pass(self._seed, step, part)
                loss = self._loss(loss_fn, shards.fetch(part), step, part)
                value = finite.loss(loss)
                self._writer.backward_begins()
                loss.backward()
                check()
            self._writer.finish(value)
        finally:
            self._writer.abort()
            for p in self._payload.parameters:
                p.grad = None

    def _checker(self, needless: Callable[[], bool]) -> Callable[[], None]:
        def check() -> None:
            self._visits += 1
            if needless():
                raise Abandoned

        injector = self._injector
        if injector is None:
            return check if self._pace is None else self._paced(check)

        def visit() -> None:
            check()
            injector.boundary(check)

        return visit if self._pace is None else self._paced(visit)

    def _paced(self, check: Callable[[], None]) -> Callable[[], None]:
        pace = self._pace
        assert pace is not None

        def visit() -> None:
            pace.visit()
            check()

        return visit

    def _loss(
        self, loss_fn: Callable[..., Any], batch: tuple[Any, ...], step: int, part: int
    ) -> Tensor:
        loss = loss_fn(*batch)
        where = self._where(step, part)
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

    def _not_finite(self, what: str, step: int, part: int) -> None:
        self.nonfinite += 1
        if self._finite:
            wire = self._payload.wire
            as_sent = "" if wire == "float32" else f" in {wire}, in which it is sent"
            raise NonFiniteError(
                f"the {what} of {self._where(step, part)} is not finite{as_sent}. "
                f"Lower the learning rate or clip; to go on regardless (e.g. with "
                f'GradScaler): CodedGradient(..., on_nonfinite="continue")'
            )

    def checker_of(self, step: int, part: int) -> Callable[[bool], None]:
        """Told whether buckets that are sums, up to `part`, are finite."""
        return _Finite(lambda what: self._not_finite(what, step, part)).check

    def check_sum(self, total: Tensor, step: int) -> None:
        """Refuse a decoded sum beyond the range of a float16 wire; all workers do so.

        Raises:
            NonFiniteError: with the step.
        """
        if self._payload.wire != "float16" or not self._finite:
            return
        gradients = total[: self._payload.gradients]
        if not bool(torch.isfinite(gradients).all()):
            raise NonFiniteError(
                f"the summed gradient of step {step} is beyond 65504, the largest "
                f'float16. Use wire="bfloat16", or scale the loss down'
            )

    def _where(self, step: int, part: int) -> str:
        shard, micro = divmod(part, self._code.micro)
        return f"step {step}, shard {shard}, micro-batch {micro}"


class _Finite:
    """Looks at the loss and gradient of one micro-batch; tells `report` once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._told = False
        self._what = "gradient"

    def loss(self, loss: Tensor) -> float | Tensor:
        """The loss, before anything of the gradient is sent.

        On a device it is not waited for: it travels with the last bucket, whose check
        sees it.
        """
        if loss.device.type != "cpu":
            self._what = "loss or gradient"
            return loss.detach()
        value = float(loss.detach())
        if not math.isfinite(value):
            self._tell(f"loss ({value})")
        return value

    def check(self, finite: bool) -> None:
        """Hear whether a bucket of the leaf is finite."""
        if not self._told and not finite:
            self._tell(self._what)

    def _tell(self, what: str) -> None:
        self._told = True
        self._report(what)
