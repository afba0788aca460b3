"""Where everything lies in a row: the geometry, computed once for a model.

A row is one flat vector of `count` elements,

    [ gradients | buffer changes | used flags | checks | moved | loss | weights | ..
                '------------------------------ tail -------------------------------
      .. | metrics | nonfinite ]
      ------------------------'

Everything that a step needs is in it, so that one linear combination decodes it all:

- The gradients of all parameters that require one, beginning with the model's last
  parameter. This is about the order in which a backward computes them, so the first
  buckets are ready first, and the tail travels with the last bucket.
- The change of every buffer (batch-norm statistics, counters) during the pass. It is
  the change and not the value, so that a buffer that stays constant keeps its bits.
- One flag per parameter, 1 if the pass gave it a gradient, so that a parameter which
  the whole batch did not use keeps `grad = None`, as it does without codedgrad.
- Check bits, by which a step shows whether all its micro-batches were computed from
  the same data (see `codedgrad.row.checks`).
- The moved flag, 1 if the pass changed a tensor that does not travel. Where the sum of
  a step has it, all workers lay out again and compute the step once more.
- The loss.
- The weight of the pass, in two elements (see `codedgrad.row.weights`).
- The metrics (see `codedgrad.row.metrics`).
- The nonfinite flag. A device sets it where a value of the row is NaN or infinite, so
  that nobody has to wait for the device before the row is sent. It is the last element,
  because it is known when all other ones are written.

The row is padded until every worker owns a slice of it, and cut into buckets (see
`codedgrad.row.cuts`).

[Note: narrow wires] With the wire types bfloat16 and float16, the gradients travel in
that type. Those of a model all of whose parameters have one of them do so by default,
as under DDP. The tail travels unrounded, in a bucket of its own. In memory the whole
row stays fp32, but its gradients only hold values of the wire type. With R the rounding
to that type,

    leaf = R(weight * gradient)
    row  = R(left + right)        at every node of the summation tree up to a row's
    sum  = R(sum of the rows in fp32)

It would not be enough to round only what is sent: R(a + b) is not R(a) + R(b), so the
row of a whole shard would differ from the sum of the micro-batches' rows that back-ups
send in its place. With a rounding at every node the two agree, because the owner rounds
its sums of micro-batches where the worker of the whole row rounds. The bits therefore
still do not depend on who was late. Unlike in fp32, they do depend on the number of
workers, because the rounding stops at the shards.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

import torch

from codedgrad.errors import ConfigError
from codedgrad.job.settings import ExchangeSettings
from codedgrad.ops import objects
from codedgrad.row import checks, cuts, devices, metrics
from codedgrad.row.tensors import real, travels, writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

_WIRES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEFAULTS = ExchangeSettings()


class Layout:
    """Says where gradients, buffers, flags and loss lie in the rows of one model.

    Attributes:
        names: the names of the parameters that require a gradient.
        parameters: these parameters, in the model's order.
        buffer_names: the names of the buffers that travel.
        buffers: these buffers: all that are given, but empty ones and those that a
            row cannot carry (sparse, quantised or expanded ones).
        dtype: the type of a row in memory, float64 if a parameter that requires a
            gradient has it.
        own_type: the type of all parameters; None where they are of several.
        device: the device of the model.
        on_host: whether this is the CPU, for whose memory nobody has to wait.
        count: the elements of a row.
        gradients: how many of them are gradients; the tail begins there.
        change_area: the place of the buffer changes in the tail.
        used_area: the place of the used flags in the tail.
        check_area: the place of the check bits in the tail.
        moved_place: the place of the moved flag in the tail.
        loss_place: the place of the loss in the tail.
        weight_place: the place of the first of the two weights in the tail.
        metric_area: the place of the metrics in the tail, near its end.
        nonfinite_place: the place of the flag for NaN and Inf in the tail, at its end.
        wire: the name of the type in which gradients travel; where the settings name
            none, it is their own.
        bucket_starts: where buckets begin, from 0 to `count`.
        narrow_buckets: the number of buckets that travel in a narrow wire type. They
            are the first ones.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        named_buffers: Iterable[tuple[str, Tensor]] = (),
        *,
        workers: int = 1,
        settings: ExchangeSettings = _DEFAULTS,
    ) -> None:
        """Lays out a model's rows.

        Args:
            named_parameters: the model's; those that require no gradient are left out.
            named_buffers: the model's that passes change, or nothing if buffers are
                not to be exchanged.
            workers: the number of workers, each of which owns a slice of every bucket.
            settings: `wire` (see [Note: narrow wires]) and `bucket_mb` are used.

        Raises:
            ConfigError: there is nothing to train, the model lies on several devices,
                a parameter is complex, there is no such wire type, or the size of the
                buckets is out of range.
        """
        named = [(n, p) for n, p in named_parameters if p.requires_grad]
        kept = [
            (n, b)
            for n, b in named_buffers
            if b.numel() > 0 and travels(b) and writable(b) is b
        ]
        _check(named, kept)
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.buffer_names = [n for n, _ in kept]
        self.buffers = [b for _, b in kept]
        types = {p.dtype for _, p in named}
        self.dtype = torch.float64 if torch.float64 in types else torch.float32
        self.own_type = types.pop() if len(types) == 1 else None
        self.device = named[0][1].device
        self.on_host = devices.on_host(self.device)
        self._shapes = [p.shape for p in self.parameters]
        self._sizes = [p.numel() for p in self.parameters]
        self._strides = [_dense_strides(p) for p in self.parameters]
        self.gradients = sum(self._sizes)
        ends = itertools.accumulate(self._sizes)
        self._offsets = [self.gradients - end for end in ends]
        self._places = objects.Places(
            list(zip(self._shapes, self._strides, self._offsets, strict=True))
        )
        self._place_tail()
        self.wire = settings.wire or _own_wire(self.own_type)
        self._narrow = self._narrow_type(self.wire)
        self._workers, self._bucket_mb = workers, settings.bucket_mb
        self.count = self._padded(self.weight_place + 2 + metrics.ELEMENTS + 1)
        self.nonfinite_place = self.count - self.gradients - 1
        first = self.nonfinite_place - metrics.ELEMENTS
        self.metric_area = slice(first, self.nonfinite_place)
        self.narrow_buckets = 0
        self.bucket_starts: list[int] = []
        self.cut(cuts.LATENCY_MB)

    def _place_tail(self) -> None:
        """Says where the parts of the tail lie, but for those at its end."""
        changes = sum(real(b).numel() for b in self.buffers)
        self.change_area = slice(0, changes)
        self.used_area = slice(changes, changes + len(self.parameters))
        self.moved_place = self.used_area.stop + checks.ELEMENTS
        self.check_area = slice(self.used_area.stop, self.moved_place)
        self.loss_place = self.moved_place + 1
        self.weight_place = self.loss_place + 1

    def _narrow_type(self, wire: str) -> torch.dtype | None:
        if wire not in _WIRES:
            raise ConfigError(f"wire must be one of {', '.join(_WIRES)}, got {wire!r}")
        narrow = _WIRES[wire]
        if narrow is not None and self.dtype == torch.float64:
            raise ConfigError(
                f"the model has float64 parameters, whose gradients cannot "
                f'travel as {wire}; use wire="float32", which keeps their own type'
            )
        return narrow

    def _padded(self, tail: int) -> int:
        """Returns the elements of a row, the tail of which needs `tail` elements."""
        least = cuts.GRAIN * self._workers
        if self._splits_tail():
            return self.gradients + max(tail, least)
        return max(self.gradients + tail, least)

    def _splits_tail(self) -> bool:
        """Returns whether the tail is a bucket of its own: [Note: narrow wires]."""
        return self._narrow is not None and self.gradients > 0

    # ---- buckets ----

    def cut(self, latency_mb: float) -> None:
        """Cuts rows into buckets of the given size, or else by the rule.

        To be called before anybody asks for `bucket_starts`, because whoever has asked
        would keep the old ones.

        Args:
            latency_mb: what a message costs, see `codedgrad.row.cuts`.
        """
        if self._splits_tail():
            assert self._narrow is not None
            starts = self._cut(self.gradients, self._narrow.itemsize, latency_mb)
            self.narrow_buckets = len(starts) - 1
            self.bucket_starts = [*starts, self.count]
        else:
            self.bucket_starts = self._cut(self.count, self.dtype.itemsize, latency_mb)

    def _cut(self, count: int, itemsize: int, latency_mb: float) -> list[int]:
        starts = cuts.bucket_starts(
            count,
            itemsize,
            self._workers,
            bucket_mb=self._bucket_mb,
            latency_mb=latency_mb,
        )
        return cuts.at_ends(starts, self.tensor_ends(), itemsize, self._workers)

    def worth_measuring(self) -> bool:
        """Returns whether the best size of buckets depends on the network."""
        large = self.gradients * self.dtype.itemsize >= cuts.WORTH_MEASURING
        return self._bucket_mb is None and self._workers > 1 and large

    def wire_of(self, bucket: int) -> torch.dtype | None:
        """Returns the type to which a bucket is rounded; None if it is not rounded."""
        return self._narrow if bucket < self.narrow_buckets else None

    def wire_at(self, place: int) -> torch.dtype | None:
        """Returns what `wire_of` does, of the bucket that the element `place` is in."""
        narrow = place < self.bucket_starts[self.narrow_buckets]
        return self._narrow if narrow else None

    def buckets_of(self, index: int) -> range:
        """Returns the buckets in which a parameter lies; none if it has no elements."""
        begin, size = self._offsets[index], self._sizes[index]
        first = bisect.bisect_right(self.bucket_starts, begin) - 1
        last = bisect.bisect_left(self.bucket_starts, begin + size) - 1
        return range(first, last + 1) if size else range(0)

    # ---- gradients ----

    def offset(self, index: int) -> int:
        """Returns where a parameter's gradient begins in a row."""
        return self._offsets[index]

    def strides(self, index: int) -> tuple[int, ...]:
        """Returns the strides that a parameter's gradient has in a row."""
        return self._strides[index]

    def view(self, index: int, flat: Tensor) -> Tensor:
        """Returns a parameter's place in the row `flat`, in the parameter's shape.

        `flat` has to begin where its storage begins.
        """
        return flat.as_strided(
            self.parameters[index].shape, self._strides[index], self._offsets[index]
        )

    def views(self, flat: Tensor) -> list[Tensor]:
        """Returns what `view` does, of all parameters; they keep `flat` alive."""
        return self._places.views(flat)

    def tensor_ends(self) -> list[int]:
        """Returns where each gradient ends in a row, in rising order."""
        return list(itertools.accumulate(reversed(self._sizes)))

    def describe(self) -> list[tuple[str, str]]:
        """Returns the name and the shape of all parts, to compare workers by."""
        rows = [
            (f"parameter {i} {n!r}", f"{tuple(p.shape)} {p.dtype}")
            for i, (n, p) in enumerate(zip(self.names, self.parameters, strict=True))
        ]
        rows += [
            (f"buffer {n!r}", f"{tuple(b.shape)} {b.dtype}")
            for n, b in zip(self.buffer_names, self.buffers, strict=True)
        ]
        return [*rows, ("payload", f"{self.count} x {self.dtype}")]


def _own_wire(own: torch.dtype | None) -> str:
    """Returns the type of all gradients if it is a narrow one, else "float32"."""
    narrow = {t: wire for wire, t in _WIRES.items() if t is not None}
    return "float32" if own is None else narrow.get(own, "float32")


def _check(
    parameters: Sequence[tuple[str, Tensor]], buffers: Sequence[tuple[str, Tensor]]
) -> None:
    """Refuses models whose gradients cannot be exchanged."""
    tensors = [*parameters, *buffers]
    if not parameters:
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
    for name, t in parameters:
        if t.is_complex():
            raise ConfigError(
                f"{name} is complex ({t.dtype}); train its real and imaginary "
                f"parts as real parameters"
            )


def _dense_strides(t: Tensor) -> tuple[int, ...]:
    """Returns strides without gaps: the tensor's own if it has none.

    So a channels_last parameter has a channels_last gradient in the row.
    """
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return torch.empty(t.shape, device="meta").stride()
            expected *= size
    return t.stride()
