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
import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.boundaries import Abandoned, Boundaries
from codedgrad.errors import ConfigError, NonFiniteError
from codedgrad.rng import pass_rng

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.buckets import Payload
    from codedgrad.codes import Code
    from codedgrad.faults import Injector
    from codedgrad.shards import StepShards


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
    ) -> None:
        """`finite`: refuse a loss or gradient that is NaN or infinite."""
        self._code = code
        self._payload = payload
        self._seed = seed
        self._injector = injector
        self._finite = finite
        self._boundaries = Boundaries(model)
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

    def row(
        self,
        node: int,
        out: Tensor,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        step: int,
        needless: Callable[[], bool],
        depth: int = 0,
    ) -> None:
        """Compute the row of `node` into `out`; `depth` below the item's own node.

        Raises:
            Abandoned: `needless` became true at a module boundary.
            NonFiniteError: names the step, shard and micro-batch.
            ConfigError: the loss has no gradient, or a gradient is sparse.
        """
        left = int(self._code.tree.left[node])
        if left < 0:
            self._pass(node, out, loss_fn, shards, step, needless)
            return
        right = int(self._code.tree.right[node])
        self.row(left, out, loss_fn, shards, step, needless, depth + 1)
        other = self._spare.get(depth)
        if other is None:
            other = self._spare[depth] = torch.empty_like(out)
        self.row(right, other, loss_fn, shards, step, needless, depth + 1)
        out.add_(other)

    def _pass(
        self,
        part: int,
        out: Tensor,
        loss_fn: Callable[..., Tensor],
        shards: StepShards,
        step: int,
        needless: Callable[[], bool],
    ) -> None:
        weight = shards.weight(part)
        if weight == 0.0:  # fewer samples than micro-batches
            out.zero_()
            return
        if self._injector is not None:
            self._injector.resume()
        check = self._checker(needless)
        check()
        self._payload.restore_buffers()
        try:
            with (
                pass_rng(self._seed, step, part),
                self._boundaries.watch(check),
                torch.enable_grad(),
            ):
                loss = self._loss(loss_fn, shards.fetch(part), step, part)
                loss.backward()
                check()
            value = float(loss.detach())
            self._payload.encode(out, weight, value)
        finally:
            for p in self._payload.parameters:
                p.grad = None
        self._check_finite(out, value, step, part)

    def _checker(self, needless: Callable[[], bool]) -> Callable[[], None]:
        def check() -> None:
            self._visits += 1
            if needless():
                raise Abandoned

        injector = self._injector
        if injector is None:
            return check

        def visit() -> None:
            check()
            injector.boundary(check)

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

    def _check_finite(self, row: Tensor, loss: float, step: int, part: int) -> None:
        # A finite sum holds no NaN or Inf: one read instead of a mask and a reduction.
        if math.isfinite(loss) and math.isfinite(float(row.sum())):
            return
        if math.isfinite(loss) and bool(torch.isfinite(row).all()):
            return  # large values of one sign
        self.nonfinite += 1
        if self._finite:
            what = "gradient" if math.isfinite(loss) else f"loss ({loss})"
            raise NonFiniteError(
                f"the {what} of {self._where(step, part)} is not finite. Lower the "
                f"learning rate or clip; to go on regardless (e.g. with GradScaler): "
                f'CodedGradient(..., on_nonfinite="continue")'
            )

    def _where(self, step: int, part: int) -> str:
        shard, micro = divmod(part, self._code.micro)
        return f"step {step}, shard {shard}, micro-batch {micro}"


class Stopwatch:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        """Start."""
        self.start = time.monotonic()
        self._lap = self.start
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._lap
        self._lap = now

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start
