"""Encoding: the gradients of one micro-batch are written into its row.

With x the payload of a micro-batch, w its weight in the step, s_0, s_1, ... s_last the
partial sums that the row still lacks (the innermost node of the summation tree last),
and R the rounding to the wire type (see `codedgrad.row.layout`),

    row = R(... R(R(w x) + s_last) ... + s_0)

There are three encoders, and they give the same bits:

- `HostEncoder` makes one pass over memory and one call per bucket
  (csrc/ops/cpu/encode.h). It needs the model on the CPU.
- `DeviceEncoder` makes one launch per bucket (csrc/ops/cuda/encode.cu) for a model on a
  GPU, and waits for nothing (`codedgrad.row.device_encoder`).
- `TorchEncoder` consists of torch expressions, for any device. It is the slow reference
  for the others.

All read `p.grad`, wherever it lies and in its own type, and the tail of the payload.
Where a pass has metrics (`codedgrad.row.metrics`), those are not multiplied by w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from codedgrad.ops.library import NAMES, kernels
from codedgrad.row.device_encoder import DeviceEncoder
from codedgrad.row.runs import Leaf, Run, Runs
from codedgrad.row.spans import METRICS, dense, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.row.payload import Payload

# Rows of so many bytes have left the caches before they are read again.
_STREAMED = 16 << 20


class Encoder(Protocol):
    """Writes rows; `begin` comes first, then all of a row's buckets, in any order.

    `out` is the row [count], and every one of `sums` is a partial sum [count], the
    innermost last. Only the bucket that is written is read of them.

    Attributes:
        flag: of the row that was written last, on a device: a tensor of one number
            there, not 0 where a value is not finite; it may be read later. None on the
            CPU, where each call has said so.
        in_place: whether `out` may be one of `sums`, which saves memory and its time.
    """

    flag: Tensor | None
    in_place: bool

    def begin(self, *, soon: bool = True) -> None:
        """Begins a new row.

        Args:
            soon: the row will be read right after it is written, so keep it in the
                cache.
        """

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes one bucket of a row.

        Returns:
            False where a value of R(w x), or with a narrow wire of a sum, is not
            finite. On a device always True, because nothing waits for the device: the
            call for the last bucket, which comes last, sets `flag` instead, and adds w
            to the row's place for it (see `codedgrad.row.tail`) where that is set.

        Raises:
            ConfigError: a gradient is sparse, or has another size than before.
        """

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Writes all buckets of a row; returns and raises what `bucket` does."""

    def buckets(
        self, some: range, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes neighbouring buckets; returns and raises what `bucket` does."""

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Writes one bucket of a micro-batch that weighs nothing, whose x is zero.

        Its metrics are written all the same; one without samples has none.
        """


def encoder_of(payload: Payload) -> Encoder:
    """Returns the fastest encoder for where the model is."""
    if payload.layout.on_host:
        return HostEncoder(payload)
    return DeviceEncoder.of(payload) or TorchEncoder(payload)


class HostEncoder:
    """Encodes gradients in the memory of the CPU, with a kernel; see `Encoder`."""

    in_place = True

    def __init__(self, payload: Payload) -> None:
        """Prepares to encode rows of this payload."""
        layout = self._layout = payload.layout
        self._tail_at = payload.tail.values.data_ptr()
        self.flag: Tensor | None = None  # every call says what is finite
        self._runs = Runs(payload)
        self._buckets = len(layout.bucket_starts) - 1
        self._type = NAMES[layout.dtype]
        self._itemsize = layout.dtype.itemsize
        self._streamed = False

    def begin(self, *, soon: bool = True) -> None:
        """Begins a new row, see `Encoder`."""
        size = self._layout.count * self._itemsize
        self._streamed = not soon and size >= _STREAMED

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes one bucket of a row, see `Encoder`."""
        return self._write(bucket, bucket + 1, out, weight, sums)

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Writes all buckets of a row, see `Encoder`."""
        return self.buckets(range(self._buckets), out, weight, sums)

    def buckets(
        self, some: range, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes neighbouring buckets, those with one rounding in one call."""
        narrow = self._layout.narrow_buckets
        first, until = some.start, some.stop
        finite = True
        if first < narrow:
            finite = self._write(first, min(until, narrow), out, weight, sums)
        if until > narrow:
            finite &= self._write(max(first, narrow), until, out, weight, sums)
        return finite

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Writes one bucket of a micro-batch that weighs nothing, see `Encoder`."""
        for run in self._runs.of(bucket, bucket + 1):
            if run.weighed:
                leaf: Leaf = [(0, run.elements, self._type)]
                self._encode(leaf, run, out, 0.0, sums)
            else:
                self._encode(self._runs.leaf(run)[0], run, out, 1.0, sums)

    def _write(
        self, first: int, until: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes the buckets from `first` to before `until`, with one rounding."""
        ops, finite = kernels("_ops"), True
        for run in self._runs.of(first, until):
            factor = weight if run.weighed else 1.0
            answer = None
            if run.found is not None:
                answer = ops.encode_gradients(
                    run.found,
                    run.parameters,
                    self._tail_at,
                    factor,
                    *self._places(run, out, sums),
                )
            if answer is None:
                leaf, copies = self._runs.leaf(run)
                answer = self._encode(leaf, run, out, factor, sums)
                del copies  # the kernel has read them
            finite &= answer
        return finite

    def _encode(
        self,
        leaf: Leaf,
        run: Run,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
    ) -> bool:
        """Calls the kernel for what lies at these places."""
        places = self._places(run, out, sums)
        return bool(kernels("_ops").encode(leaf, weight, *places))

    def _places(self, run: Run, out: Tensor, sums: Sequence[Tensor]) -> tuple[Any, ...]:
        """Returns where a run is written to, for the kernels, in their order."""
        skip = run.place * self._itemsize
        return (
            [s.data_ptr() + skip for s in sums],
            self._type,
            out.data_ptr() + skip,
            run.wire,
            self._streamed,
        )


class TorchEncoder:
    """Encodes with torch expressions, wherever the model is; see `Encoder`."""

    in_place = False

    def __init__(self, payload: Payload) -> None:
        """Prepares to encode rows of this payload."""
        self._layout = payload.layout
        self._tail = payload.tail
        self._spans = spans(payload.layout)
        self._finite: list[Tensor] = []  # one flag per bucket
        self.flag: Tensor | None = None

    def begin(self, *, soon: bool = True) -> None:  # noqa: ARG002
        """Begins a new row; torch has no stores past the cache, so `soon` is unused."""
        self._finite, self.flag = [], None

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes one bucket of a row, see `Encoder`."""
        finite = self._write(bucket, out, weight, sums)
        if self._layout.on_host:
            return bool(finite)
        self._finite.append(finite)
        if bucket == len(self._spans) - 1:
            self.flag = ~torch.stack(self._finite).all()
            place = self._layout.gradients + self._layout.nonfinite_place
            out[place] += self.flag * weight
        return True

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Writes all buckets of a row, see `Encoder`."""
        return self.buckets(range(len(self._spans)), out, weight, sums)

    def buckets(
        self, some: range, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes neighbouring buckets of a row, see `Encoder`."""
        finite = True
        for bucket in some:
            finite &= self.bucket(bucket, out, weight, sums)
        return finite

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Writes one bucket of a micro-batch that weighs nothing, see `Encoder`."""
        begin, end = self._layout.bucket_starts[bucket : bucket + 2]
        out[begin:end] = 0
        for index, at, length in self._spans[bucket]:
            if index == METRICS and self._tail.measured:
                values = self._tail.values[at : at + length]
                out[begin : begin + length].copy_(values)
            begin += length
        self._round_and_add(bucket, out, sums)

    def _write(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> Tensor:
        begin = self._layout.bucket_starts[bucket]
        places, values, unweighted = [], [], 0
        for index, at, length in self._spans[bucket]:
            place = out[begin : begin + length]
            begin += length
            g = self._tail.values if index < 0 else dense(self._layout, index)
            if g is None:
                place.zero_()
                continue
            flat = g.as_strided((g.numel(),), (1,))
            places.append(place)
            values.append(flat[at : at + length])
            if index == METRICS and self._tail.measured:
                unweighted = 1  # it is the last of all spans
        if places:
            torch._foreach_copy_(places, values)
        if places := places[: len(places) - unweighted]:
            torch._foreach_mul_(places, weight)
        return self._round_and_add(bucket, out, sums)

    def _round_and_add(
        self, bucket: int, out: Tensor, sums: Sequence[Tensor]
    ) -> Tensor:
        """Makes w x in `out` the row's bucket; returns whether it is finite."""
        begin, end = self._layout.bucket_starts[bucket : bucket + 2]
        piece, wire = out[begin:end], self._layout.wire_of(bucket)
        if wire is not None:
            piece.copy_(piece.to(wire))
        finite = torch.isfinite(piece).all()
        for other in reversed(sums):
            piece.add_(other[begin:end])
            if wire is not None:  # the sum may be beyond the range of the wire type
                piece.copy_(piece.to(wire))
                finite &= torch.isfinite(piece).all()
        return finite
