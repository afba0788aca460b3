"""The payload: what of a pass travels, and where it lies in a row.

A row is one flat vector of `count` elements,

    [ gradients | buffer changes | used flags | loss ]

so that whatever a step needs is decoded by the same linear combination:

- the gradients of all parameters that require one, in the model's order;
- for every buffer (batch-norm statistics, counters) its change during the pass, as
  a change rather than a value so that a constant buffer stays the same bits;
- per parameter 1 if the pass gave it a gradient, so that a parameter unused by the
  whole batch keeps `grad = None`, as without codedgrad;
- the loss.

It is padded so that every worker owns a slice, and cut into buckets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_GRAIN = 16  # elements; the engine's slices begin at multiples of it
_MAX_BUCKET_BYTES = 1 << 30  # MPI counts are 31 bits


class Payload:
    """Layout of rows for one model, and the copies into and out of them."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        buffers: Iterable[tuple[str, Tensor]] = (),
        *,
        workers: int = 1,
        bucket_mb: float = 4.0,
    ) -> None:
        """Lay out named parameters (those that require a gradient) and buffers.

        Raises:
            ConfigError: nothing to train, several devices, complex parameters, or a
                bucket size out of range.
        """
        named = [(n, p) for n, p in parameters if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        kept = [(n, b) for n, b in buffers if b.dtype != torch.bool and b.numel() > 0]
        self.buffer_names = [n for n, _ in kept]
        self.buffers = [b for _, b in kept]
        self._check(named + kept)
        wide = any(t.dtype == torch.float64 for t in (*self.parameters, *self.buffers))
        self.dtype = torch.float64 if wide else torch.float32
        self._sizes = [p.numel() for p in self.parameters]
        self.gradients = sum(self._sizes)
        self._changes = self.gradients + sum(b.numel() for b in self.buffers)
        self._loss = self._changes + len(self.parameters)
        self.count = max(self._loss + 1, _GRAIN * workers)
        self.bucket_starts = self._buckets(bucket_mb)
        self._scratch = torch.zeros(self.count, dtype=self.dtype)
        self._views = self._views_of(self._scratch)
        self._used = [False] * len(self.parameters)
        self._before = [b.detach().clone() for b in self.buffers]
        self._change = self._scratch[self.gradients : self._changes]
        self._buffer_sizes = [b.numel() for b in self.buffers]
        parts = self._change.split(self._buffer_sizes)
        self._change_views = [
            part.view(b.shape) for part, b in zip(parts, self.buffers, strict=True)
        ]

    @staticmethod
    def _check(tensors: Sequence[tuple[str, Tensor]]) -> None:
        if not tensors:
            raise ConfigError(
                "the model has no parameter that requires a gradient; there is "
                "nothing to train"
            )
        devices = {t.device for _, t in tensors}
        if len(devices) > 1:
            shown = ", ".join(sorted(map(str, devices)))
            raise ConfigError(
                f"parameters and buffers lie on several devices ({shown}); move the "
                f"whole model to one device first"
            )
        if next(iter(devices)).type != "cpu":
            raise ConfigError(
                f"the model is on {next(iter(devices))}; this version exchanges "
                f"gradients of models on the CPU only: use model.cpu()"
            )
        for name, t in tensors:
            if t.is_complex():
                raise ConfigError(
                    f"{name} is complex ({t.dtype}); train its real and imaginary "
                    f"parts as real parameters"
                )

    def _buckets(self, bucket_mb: float) -> list[int]:
        size = int(bucket_mb * (1 << 20))
        if not 0 < size <= _MAX_BUCKET_BYTES:
            raise ConfigError(f"bucket_mb must be in (0, 1024], got {bucket_mb}")
        each = max(_GRAIN, size // self.dtype.itemsize)
        # A last bucket of a few elements would cost a round of messages.
        number = max(1, round(self.count / each))
        if self.count / number * self.dtype.itemsize > _MAX_BUCKET_BYTES:
            number = math.ceil(self.count / each)
        step = math.ceil(self.count / number)
        return [*range(0, self.count, step), self.count]

    def _views_of(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter, in the parameter's own memory order."""
        views = []
        offset = 0
        for p in self.parameters:
            views.append(flat.as_strided(p.shape, _dense_strides(p), offset))
            offset += p.numel()
        return views

    def describe(self) -> list[tuple[str, str]]:
        """(name, what it is) of everything in the payload, to compare workers."""
        rows = [
            (f"parameter {i} {n!r}", f"{tuple(p.shape)} {p.dtype}")
            for i, (n, p) in enumerate(zip(self.names, self.parameters, strict=True))
        ]
        rows += [
            (f"buffer {n!r}", f"{tuple(b.shape)} {b.dtype}")
            for n, b in zip(self.buffer_names, self.buffers, strict=True)
        ]
        return [*rows, ("payload", f"{self.count} x {self.dtype}")]

    # ---- into a row ----

    def remember_buffers(self) -> None:
        """Note the buffers' values before the step's passes."""
        if self.buffers:
            torch._foreach_copy_(self._before, self.buffers)

    def restore_buffers(self) -> None:
        """Put the noted values back: every pass begins from the same ones."""
        if self.buffers:
            with torch.no_grad():
                torch._foreach_copy_(self.buffers, self._before)

    def encode(self, out: Tensor, weight: float, loss: float) -> None:
        """Write weight * (gradients, buffer changes, used, loss) of the last pass.

        `p.grad` must hold the pass's gradient alone; it is left as it is.

        Raises:
            ConfigError: a gradient is sparse or has another shape.
        """
        flat = self._scratch
        with torch.no_grad():
            self._copy_gradients()
            if self.buffers:
                self._copy_changes()
            flat[self._loss] = loss
            torch.mul(flat, weight, out=out)

    def _copy_changes(self) -> None:
        changes = torch._foreach_sub(self.buffers, self._before)
        torch._foreach_copy_(self._change_views, changes)
        if math.isfinite(float(self._change.sum())):
            return
        for view, now, before in zip(
            self._change_views, self.buffers, self._before, strict=True
        ):  # where nothing changed the change is 0, also for inf - inf
            view.copy_(torch.where(now == before, 0, now - before))

    def _copy_gradients(self) -> None:
        targets, sources = [], []
        for i, p in enumerate(self.parameters):
            g = p.grad
            if g is None:
                if self._used[i]:
                    self._views[i].zero_()
                self._set_used(i, used=False)
                continue
            if g.layout != torch.strided:
                raise ConfigError(
                    f"parameter {self.names[i]!r} has a sparse gradient ({g.layout}), "
                    f"which cannot be coded; use sparse=False in its embedding"
                )
            self._set_used(i, used=True)
            targets.append(self._views[i])
            sources.append(g)
        if targets:
            torch._foreach_copy_(targets, sources)

    def _set_used(self, index: int, *, used: bool) -> None:
        if self._used[index] != used:
            self._used[index] = used
            self._scratch[self._changes + index] = float(used)

    # ---- out of a decoded sum ----

    def scatter(self, total: Tensor) -> Tensor:
        """Add the decoded gradients to `p.grad`, set the buffers; the mean loss.

        Where `p.grad` is None it becomes a view of `total`, without a copy.
        """
        with torch.no_grad():
            used = total[self._changes : self._loss].tolist()
            views = self._views_of(total)
            for p, view, share in zip(self.parameters, views, used, strict=True):
                if share == 0.0:
                    continue
                gradient = view if view.dtype == p.dtype else view.to(p.dtype)
                if p.grad is None:
                    p.grad = gradient
                else:
                    p.grad.add_(gradient)
            self._apply_changes(total)
        return total[self._loss].clone()

    def _apply_changes(self, total: Tensor) -> None:
        if not self.buffers:
            return
        parts = total[self.gradients : self._changes].split(self._buffer_sizes)
        changes = [
            (part if buffer.is_floating_point() else part.round())
            .view(buffer.shape)
            .to(buffer.dtype)
            for part, buffer in zip(parts, self.buffers, strict=True)
        ]
        torch._foreach_copy_(self.buffers, self._before)
        torch._foreach_add_(self.buffers, changes)


def _dense_strides(t: Tensor) -> tuple[int, ...]:
    """The tensor's own strides if it fills its memory, e.g. channels_last."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return torch.empty(t.shape, device="meta").stride()
            expected *= size
    return t.stride()
