"""Encoding: gradients of one micro-batch into its row, bucket by bucket.

With the payload x of a micro-batch, its weight w in the step, the partial sums s_i
that the row still lacks (innermost last) and R the rounding to the wire type,

    row = R(... R(R(w x) + s_last) ... + s_0)

`HostEncoder` does so in one pass over memory and one call per bucket
(csrc/ops/cpu/encode.h); `TorchEncoder` as torch expressions on any device: the slow
reference, with the same bits. Both read `p.grad`, wherever it lies.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.ops.library import NAMES, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codedgrad.row.layout import Payload

_TAIL = -1
# Bytes of a row; larger ones have left the caches before they are read again.
_STREAMED = 16 << 20


class Span(NamedTuple):
    """A run of elements of one parameter (or of the tail) inside a bucket."""

    parameter: int
    first: int
    length: int


def spans(payload: Payload) -> list[list[Span]]:
    """By bucket, what lies in it, in order; padding belongs to the tail."""
    starts = payload.bucket_starts
    found: list[list[Span]] = [[] for _ in starts[1:]]
    places = [
        (payload.offset(i), payload.parameters[i].numel(), i)
        for i in range(len(payload.parameters))
    ]
    places.append((payload.gradients, payload.count - payload.gradients, _TAIL))
    bucket = 0
    for offset, size, index in sorted(p for p in places if p[1]):
        at = offset
        while at < offset + size:
            while starts[bucket + 1] <= at:
                bucket += 1
            end = min(offset + size, starts[bucket + 1])
            found[bucket].append(Span(index, at - offset, end - at))
            at = end
    return found


def dense(payload: Payload, index: int) -> Tensor | None:
    """A parameter's gradient in the row's own memory order; None if it has none.

    A copy only where the gradient lies otherwise in memory.

    Raises:
        ConfigError: it is sparse.
    """
    g = payload.parameters[index].grad
    if g is None:
        return None
    if g.layout != torch.strided:
        raise ConfigError(
            f"parameter {payload.names[index]!r} has a sparse gradient ({g.layout}), "
            f"which cannot be coded; use sparse=False in its embedding"
        )
    strides = payload.strides(index)
    if g.dtype == payload.dtype and g.stride() == strides:
        return g.detach()
    out = torch.empty_strided(g.shape, strides, dtype=payload.dtype, device=g.device)
    return out.copy_(g.detach())


class HostEncoder:
    """For gradients in the memory of the CPU."""

    def __init__(self, payload: Payload) -> None:
        """Of this payload's buckets."""
        self._payload = payload
        self._spans = spans(payload)
        self._bounds = list(itertools.pairwise(payload.bucket_starts))
        self._sizes = [p.numel() for p in payload.parameters]
        self._type = NAMES[payload.dtype]
        self._size = payload.dtype.itemsize
        self._encode = kernels("_ops").encode
        self._streamed = False

    def begin(self, *, soon: bool = True) -> None:
        """A new row. `soon`: read as soon as it is written, so worth a cache."""
        size = self._payload.count * self._size
        self._streamed = not soon and size >= _STREAMED

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Write one bucket of the row `out` [count]; False where it is not finite."""
        return self._write(self._spans[bucket], bucket, out, weight, sums)

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Write all buckets."""
        narrow, last = self._payload.narrow_buckets, len(self._bounds) - 1
        good = True
        for first, until in ((0, narrow), (narrow, last + 1)):
            if first < until:
                inside = [s for spans in self._spans[first:until] for s in spans]
                good &= self._write(inside, first, out, weight, sums)
        return good

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Write a bucket of a micro-batch without samples: a leaf of zeros."""
        begin, end = self._bounds[bucket]
        self._call([(0, end - begin)], bucket, begin, out, 0.0, sums)

    def _write(
        self,
        inside: list[Span],
        first: int,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
    ) -> bool:
        """What lies in a run of buckets, the first of which is `first`."""
        payload = self._payload
        begin, held, pieces = self._bounds[first][0], [], []
        for index, at, length in inside:
            if index == _TAIL:
                g: Tensor | None = payload.tail
            else:
                g = payload.parameters[index].grad
                if g is not None and (
                    g.dtype != payload.dtype or g.stride() != payload.strides(index)
                ):
                    g = dense(payload, index)
                    held.append(g)  # until it is read
                if g is not None and g.numel() != self._sizes[index]:
                    raise ConfigError(
                        f"the gradient of {payload.names[index]!r} has {g.numel()} "
                        f"elements and had {self._sizes[index]}; make a new "
                        f"CodedGradient where a model's shapes change"
                    )
            place = g.data_ptr() + at * self._size if g is not None else 0
            pieces.append((place, length))
        return self._call(pieces, first, begin, out, weight, sums)

    def _call(
        self,
        pieces: list[tuple[int, int]],
        bucket: int,
        begin: int,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
    ) -> bool:
        skip = begin * self._size
        wire = self._payload.wire_of(bucket)
        return bool(
            self._encode(
                pieces,
                weight,
                [s.data_ptr() + skip for s in sums],
                self._type,
                out.data_ptr() + skip,
                "" if wire is None else NAMES[wire],
                self._streamed,
            )
        )


class TorchEncoder:
    """The same as torch expressions, wherever the model is.

    On a device nothing is waited for before the last bucket, or the whole row: what
    was not finite is told of there.
    """

    def __init__(self, payload: Payload) -> None:
        """Of this payload's buckets."""
        self._payload = payload
        self._spans = spans(payload)
        self._flags: list[Tensor] = []

    def begin(self, *, soon: bool = True) -> None:  # noqa: ARG002 (no such stores here)
        """As `HostEncoder.begin`."""
        self._flags = []

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """As `HostEncoder.bucket`."""
        self._flags.append(self._bucket(bucket, out, weight, sums))
        last = bucket == len(self._spans) - 1
        return self._told() if last or self._payload.on_host else True

    def _told(self) -> bool:
        flags, self._flags = self._flags, []
        return bool(torch.stack(flags).all())

    def _bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> Tensor:
        begin = self._payload.bucket_starts[bucket]
        places, values = [], []
        for index, at, length in self._spans[bucket]:
            place = out[begin : begin + length]
            begin += length
            if index == _TAIL:
                g: Tensor | None = self._payload.tail
            else:
                g = dense(self._payload, index)
            if g is None:
                place.zero_()
                continue
            flat = g.as_strided((g.numel(),), (1,))
            places.append(place)
            values.append(flat[at : at + length])
        if places:
            torch._foreach_copy_(places, values)
            torch._foreach_mul_(places, weight)
        return self._add(bucket, out, sums)

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Write all buckets."""
        for bucket in range(len(self._spans)):
            self._flags.append(self._bucket(bucket, out, weight, sums))
        return self._told()

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """As `HostEncoder.nothing`."""
        begin, end = self._payload.bucket_starts[bucket : bucket + 2]
        out[begin:end] = 0
        self._add(bucket, out, sums)

    def _add(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> Tensor:
        begin, end = self._payload.bucket_starts[bucket : bucket + 2]
        piece, wire = out[begin:end], self._payload.wire_of(bucket)
        if wire is not None:
            piece.copy_(piece.to(wire))
        good = torch.isfinite(piece).all()
        for other in reversed(sums):
            piece.add_(other[begin:end])
            if wire is not None:  # and may so have left the range of the type
                piece.copy_(piece.to(wire))
                good &= torch.isfinite(piece).all()
        return good


def encoder_of(payload: Payload) -> HostEncoder | TorchEncoder:
    """The one for where the model is."""
    return HostEncoder(payload) if payload.on_host else TorchEncoder(payload)
