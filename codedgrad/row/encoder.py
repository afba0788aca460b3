"""Encoding: the gradients of one micro-batch are written into its row.

With x the payload of a micro-batch, w its weight in the step, s_0, s_1, ... s_last the
partial sums that the row still lacks (the innermost node of the summation tree last),
and R the rounding to the wire type (see `codedgrad.row.layout`),

    row = R(... R(R(w x) + s_last) ... + s_0)

There are two encoders, and they give the same bits:

- `HostEncoder` makes one pass over memory and one call per bucket
  (csrc/ops/cpu/encode.h). It needs the model on the CPU.
- `TorchEncoder` consists of torch expressions, for any device. It is the slow reference
  for the other.

Both read `p.grad`, wherever it lies, and the tail of the payload. Where a pass has
metrics (`codedgrad.row.metrics`), those are not multiplied by w.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.ops.library import NAMES, kernels
from codedgrad.row.spans import METRICS, Span, dense, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.row.payload import Payload

# Rows of so many bytes have left the caches before they are read again.
_STREAMED = 16 << 20


class Encoder(Protocol):
    """Writes rows; `begin` comes first, then all of a row's buckets, in any order.

    `out` is the row [count], and every one of `sums` is a partial sum [count], the
    innermost last. Only the bucket that is written is read of them.
    """

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
            finite. On a device only the call for the last bucket says so, for all
            buckets of the row, because the others do not wait for the device.

        Raises:
            ConfigError: a gradient is sparse, or has another size than before.
        """

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Writes all buckets of a row; returns and raises what `bucket` does."""

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Writes one bucket of a micro-batch that weighs nothing, whose x is zero.

        Its metrics are written all the same; one without samples has none.
        """


def encoder_of(payload: Payload) -> Encoder:
    """Returns the fastest encoder for where the model is."""
    return HostEncoder(payload) if payload.layout.on_host else TorchEncoder(payload)


class _Part(NamedTuple):
    """A run of spans that is written by one call.

    `place` is its first element in a row, `weighed` whether it is multiplied by the
    weight, `parameters` are those in it, and `gradients` is what finds their gradients
    in one call, if that can be done.
    """

    spans: list[Span]
    place: int
    weighed: bool
    parameters: list[Tensor]
    gradients: Any


class HostEncoder:
    """Encodes gradients in the memory of the CPU, with a kernel; see `Encoder`."""

    def __init__(self, payload: Payload) -> None:
        """Prepares to encode rows of this payload."""
        layout = self._layout = payload.layout
        self._tail = payload.tail
        self._spans = spans(layout)
        self._bounds = list(itertools.pairwise(layout.bucket_starts))
        self._parameters = layout.parameters
        self._sizes = [p.numel() for p in layout.parameters]
        self._strides = [layout.strides(i) for i in range(len(layout.parameters))]
        self._type = NAMES[layout.dtype]
        self._itemsize = layout.dtype.itemsize
        self._kernel = kernels("_ops").encode
        self._streamed = False
        self._runs: dict[tuple[int, int, bool], list[_Part]] = {}

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
        """Writes all buckets of a row, those with one rounding in one call."""
        narrow, last = self._layout.narrow_buckets, len(self._bounds) - 1
        finite = True
        for first, until in ((0, narrow), (narrow, last + 1)):
            if first < until:
                finite &= self._write(first, until, out, weight, sums)
        return finite

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Writes one bucket of a micro-batch that weighs nothing, see `Encoder`."""
        others, metrics = self._split(self._spans[bucket])
        count = sum(span.length for span in others)
        place = self._bounds[bucket][0]
        if count:
            self._encode([(0, count)], place, out, 0.0, sums)
        if metrics:
            self._encode(self._pieces(metrics)[0], place + count, out, 1.0, sums)

    def _split(self, inside: list[Span]) -> tuple[list[Span], list[Span]]:
        """Returns the spans that are multiplied by the weight, and the other ones."""
        if not self._tail.measured:
            return inside, []
        metrics = [span for span in inside if span.parameter == METRICS]
        return inside[: len(inside) - len(metrics)], metrics

    def _parts(self, first: int, until: int) -> list[_Part]:
        """Returns the parts of a run of buckets, which are kept for the next time."""
        measured = self._tail.measured
        parts = self._runs.get((first, until, measured))
        if parts is None:
            inside = [s for spans in self._spans[first:until] for s in spans]
            parts, place = [], self._bounds[first][0]
            for spans, weighed in zip(self._split(inside), (True, False), strict=True):
                if spans:
                    found = self._found_by_kernel(spans)
                    parts.append(_Part(spans, place, weighed, *found))
                    place += sum(span.length for span in spans)
            self._runs[first, until, measured] = parts
        return parts

    def _found_by_kernel(self, spans: list[Span]) -> tuple[list[Tensor], Any]:
        """Returns what finds the spans' gradients in one call, None if torch cannot.

        The parameters whose gradients are asked for come first.
        """
        if not objects.EXCHANGE:
            return [], None
        inside = sorted({span.parameter for span in spans if span.parameter >= 0})
        at = {index: place for place, index in enumerate(inside)}
        kinds = [(self._sizes[i], list(self._strides[i])) for i in inside]
        table = [(at.get(index, -1), *rest) for index, *rest in spans]
        found = kernels("_ops").Gradients(table, kinds)
        return [self._parameters[i] for i in inside], found

    def _write(
        self, first: int, until: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes the buckets from `first` to before `until`, with one rounding."""
        finite = True
        for part in self._parts(first, until):
            factor = weight if part.weighed else 1.0
            answer = None
            if part.gradients is not None:
                answer = self._encode_found(part, out, factor, sums)
            if answer is None:
                pieces, copies = self._pieces(part.spans)
                answer = self._encode(pieces, part.place, out, factor, sums)
                del copies  # the kernel has read them
            finite &= answer
        return finite

    def _encode_found(
        self, part: _Part, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool | None:
        """Encodes the gradients that the parameters have now, in one call.

        Returns:
            What `_encode` does; None, and nothing is written, where a gradient does not
            lie in memory as in the row.
        """
        skip = part.place * self._itemsize
        wire = self._layout.wire_at(part.place)
        answer: bool | None = kernels("_ops").encode_gradients(
            part.gradients,
            part.parameters,
            self._tail.values.data_ptr(),
            weight,
            [s.data_ptr() + skip for s in sums],
            type=self._type,
            out=out.data_ptr() + skip,
            wire="" if wire is None else NAMES[wire],
            streamed=self._streamed,
        )
        return answer

    def _pieces(
        self, inside: list[Span]
    ) -> tuple[list[tuple[int, int]], list[Tensor | None]]:
        """Returns (address, elements) of every span's values; address 0 means zeros.

        Gradients that do not lie in memory as in the row are copied. The second list
        holds these copies, which have to stay until the kernel has read them.
        """
        dtype, itemsize = self._layout.dtype, self._itemsize
        parameters, strides, sizes = self._parameters, self._strides, self._sizes
        pieces: list[tuple[int, int]] = []
        copies: list[Tensor | None] = []
        for index, at, length in inside:
            if index < 0:
                g: Tensor | None = self._tail.values
            else:
                g = parameters[index].grad
                if g is not None and (g.dtype != dtype or g.stride() != strides[index]):
                    g = dense(self._layout, index)
                    copies.append(g)
                if g is not None and g.numel() != sizes[index]:
                    raise ConfigError(
                        f"the gradient of {self._layout.names[index]!r} has "
                        f"{g.numel()} elements and had {sizes[index]}; make a new "
                        f"CodedGradient where a model's shapes change"
                    )
            place = g.data_ptr() + at * itemsize if g is not None else 0
            pieces.append((place, length))
        return pieces, copies

    def _encode(
        self,
        pieces: list[tuple[int, int]],
        place: int,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
    ) -> bool:
        """Calls the kernel for pieces that begin at the element `place` of a row."""
        skip = place * self._itemsize
        wire = self._layout.wire_at(place)
        return bool(
            self._kernel(
                pieces,
                weight,
                [s.data_ptr() + skip for s in sums],
                type=self._type,
                out=out.data_ptr() + skip,
                wire="" if wire is None else NAMES[wire],
                streamed=self._streamed,
            )
        )


class TorchEncoder:
    """Encodes with torch expressions, wherever the model is; see `Encoder`."""

    def __init__(self, payload: Payload) -> None:
        """Prepares to encode rows of this payload."""
        self._layout = payload.layout
        self._tail = payload.tail
        self._spans = spans(payload.layout)
        self._finite: list[Tensor] = []  # one flag per bucket, still on the device

    def begin(self, *, soon: bool = True) -> None:  # noqa: ARG002
        """Begins a new row; torch has no stores past the cache, so `soon` is unused."""
        self._finite = []

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Writes one bucket of a row, see `Encoder`."""
        self._finite.append(self._write(bucket, out, weight, sums))
        last = bucket == len(self._spans) - 1
        return self._all_finite() if last or self._layout.on_host else True

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Writes all buckets of a row, see `Encoder`."""
        for bucket in range(len(self._spans)):
            self._finite.append(self._write(bucket, out, weight, sums))
        return self._all_finite()

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

    def _all_finite(self) -> bool:
        """Waits for the device; returns whether all buckets so far are finite."""
        flags, self._finite = self._finite, []
        return bool(torch.stack(flags).all())

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
