"""The payload: what of a pass travels, and where it lies in a row.

A row is one flat vector of `count` elements,

    [ gradients | buffer changes | used flags | loss ]

so that whatever a step needs is decoded by the same linear combination:

- the gradients of all parameters that require one, the model's last one first: about
  the order in which a backward brings them, so that the first buckets are ready first
  and the rest of the payload travels with the last;
- for every buffer (batch-norm statistics, counters) its change during the pass, as
  a change rather than a value so that a constant buffer stays the same bits;
- per parameter 1 if the pass gave it a gradient, so that a parameter unused by the
  whole batch keeps `grad = None`, as without codedgrad;
- the loss.

It is padded so that every worker owns a slice, and cut into buckets.

[Note: narrow wires] With `wire` bfloat16 or float16 the gradients travel in that type,
the rest, in a bucket of its own, as it is. In memory all of a row stays fp32, but its
gradients hold values of the wire type: with R the rounding to it,

    leaf = R(weight * gradient)
    row  = R(left + right)        at every node of the tree up to a row's
    sum  = R(sum of the rows in fp32)

A row of a whole shard and those of its micro-batches, which back-ups send, would not
agree if only what is sent were rounded: R(a + b) is not R(a) + R(b). Rounded at every
node they do: the owner, who adds micro rows up, rounds where the row's own worker
does. So the bits still depend on nobody's lateness; unlike in fp32 they depend on the
number of workers, whose shards are where rounding ends.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.ops.library import NAMES, kernels
from codedgrad.row import cuts, devices

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LETTERS = {torch.float32: "f", torch.float64: "d", torch.int64: "q"}


class Payload:
    """Layout of rows for one model; the way out of a decoded one."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        buffers: Iterable[tuple[str, Tensor]] = (),
        *,
        workers: int = 1,
        bucket_mb: float | None = None,
        wire: str = "float32",
    ) -> None:
        """Lay out named parameters (those that require a gradient) and buffers.

        `wire`: type in which gradients travel, see [Note: narrow wires].

        Raises:
            ConfigError: nothing to train, several devices, complex parameters, no
                such wire type, or a bucket size out of range.
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
        self._offsets = [
            self.gradients - end for end in itertools.accumulate(self._sizes)
        ]
        self._changes = self.gradients + sum(b.numel() for b in self.buffers)
        self._loss = self._changes + len(self.parameters)
        self.count = max(self._loss + 1, cuts.GRAIN * workers)
        self.wire = wire
        self.narrow_buckets = 0  # the first ones: those of gradients
        self._narrow = self._narrow_type(wire)
        if self._narrow is not None and self.gradients > 0:
            rest = max(self._loss + 1 - self.gradients, cuts.GRAIN * workers)
            self.count = self.gradients + rest
        self._workers, self._bucket_mb = workers, bucket_mb
        self.bucket_starts: list[int] = []
        self.cut(cuts.LATENCY_MB)
        self.device = self.parameters[0].device
        self.on_host = self.device.type == "cpu"
        self._strides = [_dense_strides(p) for p in self.parameters]
        self.tail = torch.zeros(
            self.count - self.gradients, dtype=self.dtype, device=self.device
        )
        self._tail_values = self.tail.numpy() if self.on_host else self.tail
        self._flags = self.tail[self._changes - self.gradients :][: len(named)]
        self._used = [False] * len(named)
        self._before = [b.detach().clone() for b in self.buffers]
        self._change = self.tail[: self._changes - self.gradients]
        self._buffer_sizes = [b.numel() for b in self.buffers]
        # Where the kernels find the buffers of the step's begin; None: torch copies.
        self._letters: list[tuple[int, int, str]] | None = None
        if all(
            b.dtype in _LETTERS and b.is_contiguous() and b.device.type == "cpu"
            for b in self.buffers
        ):
            self._letters = [
                (b.data_ptr(), b.numel(), _LETTERS[b.dtype]) for b in self._before
            ]
        parts = self._change.split(self._buffer_sizes)
        self._change_views = [
            part.view(b.shape) for part, b in zip(parts, self.buffers, strict=True)
        ]

    def cut(self, latency_mb: float) -> None:
        """Cut into buckets, by the rule of `codedgrad.row.cuts` unless a size was given.

        Before anybody has asked where they begin.
        """
        how = (self._workers, self._bucket_mb, latency_mb)
        if self._narrow is None or self.gradients == 0:
            size = self.dtype.itemsize
            starts = cuts.bucket_starts(self.count, size, *how)
            self.bucket_starts = self._at_ends(starts, size)
            return
        size = self._narrow.itemsize
        starts = self._at_ends(cuts.bucket_starts(self.gradients, size, *how), size)
        self.narrow_buckets = len(starts) - 1
        self.bucket_starts = [*starts, self.count]

    def _at_ends(self, starts: list[int], itemsize: int) -> list[int]:
        return cuts.at_ends(starts, self.tensor_ends(), itemsize, self._workers)

    def worth_measuring(self) -> bool:
        """Does the best size of buckets depend on the network?"""
        large = self.gradients * self.dtype.itemsize >= cuts.WORTH_MEASURING
        return self._bucket_mb is None and self._workers > 1 and large

    @staticmethod
    def _check(tensors: Sequence[tuple[str, Tensor]]) -> None:
        if not tensors:
            raise ConfigError(
                "the model has no parameter that requires a gradient; there is "
                "nothing to train"
            )
        places = {t.device for _, t in tensors}
        if len(places) > 1:
            shown = ", ".join(sorted(map(str, places)))
            raise ConfigError(
                f"parameters and buffers lie on several devices ({shown}); move the "
                f"whole model to one device first"
            )
        devices.check(next(iter(places)))
        for name, t in tensors:
            if t.is_complex():
                raise ConfigError(
                    f"{name} is complex ({t.dtype}); train its real and imaginary "
                    f"parts as real parameters"
                )

    def _narrow_type(self, wire: str) -> torch.dtype | None:
        types = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if wire not in types:
            raise ConfigError(f"wire must be one of {', '.join(types)}, got {wire!r}")
        narrow = types[wire]
        if narrow is not None and self.dtype == torch.float64:
            raise ConfigError(
                f"the model has float64 parameters or buffers, whose gradients cannot "
                f'travel as {wire}; use wire="float32", which keeps their own type'
            )
        return narrow

    def wire_of(self, bucket: int) -> torch.dtype | None:
        """The type to which a bucket is rounded; None: it travels as it is."""
        return self._narrow if bucket < self.narrow_buckets else None

    def offset(self, index: int) -> int:
        """Where a parameter's gradient begins in a row."""
        return self._offsets[index]

    def strides(self, index: int) -> tuple[int, ...]:
        """The memory order of a parameter's gradient in a row."""
        return self._strides[index]

    def view(self, index: int, flat: Tensor) -> Tensor:
        """A parameter's place in a row, in its own shape and memory order."""
        return flat.as_strided(
            self.parameters[index].shape, self._strides[index], self._offsets[index]
        )

    def buckets_of(self, index: int) -> range:
        """The buckets in which a parameter lies; none if it has no elements."""
        begin, size = self._offsets[index], self._sizes[index]
        first = bisect.bisect_right(self.bucket_starts, begin) - 1
        last = bisect.bisect_left(self.bucket_starts, begin + size) - 1
        return range(first, last + 1) if size else range(0)

    def tensor_ends(self) -> list[int]:
        """Where each gradient ends in a row, rising."""
        return list(itertools.accumulate(reversed(self._sizes)))

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
        if self.buffers and self._letters is not None:
            kernels("_ops").copies(self._both(), False)
        elif self.buffers:
            torch._foreach_copy_(self._before, self.buffers)

    def restore_buffers(self) -> None:
        """Put the noted values back: every pass begins from the same ones."""
        if self.buffers and self._letters is not None:
            kernels("_ops").copies(self._both(), True)
        elif self.buffers:
            with torch.no_grad():
                torch._foreach_copy_(self.buffers, self._before)

    def fill_tail(self, loss: float | Tensor, given: Sequence[bool] = ()) -> None:
        """Note in `tail`, unscaled, what of the last pass is not a gradient."""
        used = [p.grad is not None for p in self.parameters]
        if any(given):  # had one, which is encoded already
            used = [u or g for u, g in zip(used, given, strict=True)]
        if used != self._used:
            self._used = used
            self._flags.copy_(torch.tensor(used))
        if self.buffers:
            with torch.no_grad():
                self._copy_changes()
        # numpy's assignment takes 0.1 us, torch's 15.
        tail = self.tail if isinstance(loss, Tensor) else self._tail_values
        tail[self._loss - self.gradients] = loss

    def _copy_changes(self) -> None:
        if self._letters is not None:
            place = self._change.data_ptr()
            kernels("_ops").changes(self._both(), NAMES[self.dtype], place, True)
            return
        for view, now, before in zip(
            self._change_views, self.buffers, self._before, strict=True
        ):  # where nothing changed the change is 0, also for inf - inf
            view.copy_(torch.where(now == before, 0, now - before))

    def _both(self) -> list[tuple[int, int, int, str]]:
        """Buffers as the kernels take them; dozens of calls of torch cost more."""
        assert self._letters is not None
        both = []
        for b, (before, size, letter) in zip(self.buffers, self._letters, strict=True):
            if b.numel() != size or _LETTERS.get(b.dtype) != letter:
                raise ConfigError(
                    f"a buffer has become {b.numel()} x {b.dtype} since CodedGradient "
                    f"was made; make a new one where a model changes"
                )
            both.append((b.data_ptr(), before, size, letter))
        return both

    # ---- out of a decoded sum ----

    def scatter(self, total: Tensor, tail: Tensor | None = None) -> Tensor:
        """Add the decoded gradients to `p.grad`, set the buffers; the mean loss.

        Where `p.grad` is None it becomes a view of `total`, without a copy. `tail`:
        what of `total` lies after the gradients, on the CPU, so that a device is not
        waited for; the loss is there, too.
        """
        if tail is None:
            tail = total[self.gradients :]
        flags = slice(self._changes - self.gradients, self._loss - self.gradients)
        with torch.no_grad():
            used = tail[flags].tolist()
            for index, (p, share) in enumerate(zip(self.parameters, used, strict=True)):
                if share == 0.0:
                    continue
                view = self.view(index, total)
                gradient = view if view.dtype == p.dtype else view.to(p.dtype)
                if p.grad is None:
                    p.grad = gradient
                else:
                    p.grad.add_(gradient)
            self._apply_changes(total)
        return tail[self._loss - self.gradients].clone()

    def _apply_changes(self, total: Tensor) -> None:
        if not self.buffers:
            return
        if self._letters is not None:
            place = total[self.gradients :].data_ptr()
            kernels("_ops").changes(self._both(), NAMES[self.dtype], place, False)
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
