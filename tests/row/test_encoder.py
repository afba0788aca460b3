"""Rows from gradients: the kernel and the torch expressions agree to the bit."""

from __future__ import annotations

import itertools
import math
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from ops import emulation
from torch import Tensor, nn

from codedgrad import ConfigError
from codedgrad.row import encoder as encoding
from codedgrad.row.device_encoder import DeviceEncoder
from codedgrad.row.encoder import HostEncoder, TorchEncoder, spans
from codedgrad.row.payload import Payload

if TYPE_CHECKING:
    from codedgrad.row.encoder import Encoder

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Odd(nn.Module):
    """Shapes, memory orders and types that a model may have."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 5, dtype=dtype))
        self.empty = nn.Parameter(torch.ones(0, 4, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(7, dtype=dtype))
        last = torch.randn(2, 3, 4, 5, dtype=dtype)
        self.channels = nn.Parameter(last.to(memory_format=torch.channels_last))
        self.narrow = nn.Parameter(torch.randn(33, dtype=torch.bfloat16))
        self.big = nn.Parameter(torch.randn(5003, dtype=dtype))
        self.register_buffer("mean", torch.randn(6, dtype=dtype))

    def gradients(self) -> None:
        generator = torch.Generator().manual_seed(3)
        for p in self.parameters():
            if p is not self.unused:
                scale = 10.0 ** torch.randint(-6, 3, p.shape, generator=generator)
                p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        self.channels.grad = self.channels.grad.contiguous()  # not the row's order
        self.mean += 1


def payload_of(model: nn.Module, wire: str, bucket_mb: float) -> Payload:
    return Payload(
        model.named_parameters(),
        model.named_buffers(),
        workers=3,
        settings=ExchangeSettings(wire, bucket_mb),
    )


def encoders(payload: Payload) -> list[Encoder]:
    """All there are; the one for GPUs with its kernel emulated."""
    found: list[Encoder] = [HostEncoder(payload), TorchEncoder(payload)]
    if shutil.which("c++"):
        found.append(DeviceEncoder(payload, emulation.module()))
    return found


def rows(payload: Payload, weight: float, sums: list[Tensor]) -> list[Tensor]:
    """By each encoder, bucket by bucket and at once, for now and for later."""
    found = []
    for encoder in encoders(payload):
        for whole, soon in itertools.product((True, False), repeat=2):
            encoder.begin(soon=soon)
            out = torch.full(
                (payload.layout.count,), math.nan, dtype=payload.layout.dtype
            )
            if whole:
                assert encoder.row(out, weight, sums)
            else:
                for bucket in range(len(payload.layout.bucket_starts) - 1):
                    assert encoder.bucket(bucket, out, weight, sums)
            found.append(out)
            if encoder.in_place:
                found += in_place(payload, encoder, weight, sums)
    return found


def in_place(
    payload: Payload, encoder: Encoder, weight: float, sums: list[Tensor]
) -> list[Tensor]:
    """Rows that lie where one of the sums lay, and is lost."""
    found = []
    for index in range(len(sums)):
        own = [s.clone() for s in sums]
        count = len(payload.layout.bucket_starts) - 1
        for some in (range(count // 2), range(count // 2, count)):
            assert not some or encoder.buckets(some, own[index], weight, own)
        found.append(own[index])
    return found


@pytest.mark.parametrize("bucket_mb", [0.0005, 0.01, 1.0])
@pytest.mark.parametrize("deep", [0, 1, 3])
@pytest.mark.parametrize("wire", ["float32", "float64", "bfloat16", "float16"])
def test_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, wire: str, deep: int, bucket_mb: float
) -> None:
    monkeypatch.setattr(encoding, "_STREAMED", 0)  # also small rows, past the caches
    dtype = torch.float64 if wire == "float64" else torch.float32
    model = Odd(dtype)
    payload = payload_of(model, wire if wire in NARROW else "float32", bucket_mb)
    payload.buffers.remember()
    model.gradients()
    payload.tail.fill(2.5)
    sums = [torch.randn(payload.layout.count, dtype=dtype) for _ in range(deep)]
    first, *others = rows(payload, 0.3, sums)
    assert not first.isnan().any()
    for other in others:
        assert torch.equal(first, other)
    # And that of single operations on one parameter.
    want = model.big.grad.to(dtype) * 0.3
    narrow = NARROW.get(wire, dtype)
    want = want.to(narrow).to(dtype)
    for s in reversed(sums):
        want = (want + payload.layout.view(5, s)).to(narrow).to(dtype)
    assert torch.equal(payload.layout.view(5, first), want)
    assert not deep or torch.equal(
        payload.layout.view(2, row_of_nothing(payload, sums)),
        payload.layout.view(2, first),
    )


def row_of_nothing(payload: Payload, sums: list[Tensor]) -> Tensor:
    """The row of a micro-batch without samples, the same by both."""
    made = []
    for encoder in encoders(payload):
        out = torch.full((payload.layout.count,), math.nan, dtype=payload.layout.dtype)
        for bucket in range(len(payload.layout.bucket_starts) - 1):
            encoder.nothing(bucket, out, sums)
        made.append(out)
        if encoder.in_place and sums:
            own = [s.clone() for s in sums]
            for bucket in range(len(payload.layout.bucket_starts) - 1):
                encoder.nothing(bucket, own[0], own)
            made.append(own[0])
    assert all(torch.equal(one, made[0]) for one in made)
    return made[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2047, 2048, 5002])
def test_what_is_not_finite_is_seen(bad: float, at: int) -> None:
    model = Odd(torch.float32)
    payload = payload_of(model, "float32", 0.001)
    model.gradients()
    model.big.grad[at] = bad
    payload.tail.fill(1.0)
    out = torch.empty(payload.layout.count)
    for encoder in (HostEncoder(payload), TorchEncoder(payload)):
        assert not encoder.row(out, 1.0, ())
        seen = [
            bool(encoder.bucket(b, out, 1.0, ()))
            for b in range(len(payload.layout.bucket_starts) - 1)
        ]
        assert seen.count(False) == 1
        assert not math.isfinite(payload.layout.view(5, out)[at])


def test_a_large_finite_gradient_is_finite() -> None:
    model = Odd(torch.float32)
    model.gradients()
    model.big.grad.fill_(3e38)  # whose sum overflows
    payload = payload_of(model, "float32", 1.0)
    assert HostEncoder(payload).row(torch.empty(payload.layout.count), 1.0, ())
    narrow = payload_of(model, "float16", 1.0)
    for encoder in (HostEncoder(narrow), TorchEncoder(narrow)):
        assert not encoder.row(torch.empty(narrow.layout.count), 1.0, ())


def test_a_sum_beyond_the_wire_type_is_seen() -> None:
    model = Odd(torch.float32)
    model.gradients()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.fill_(6e4)
    payload = payload_of(model, "float16", 1.0)
    ones = torch.full((payload.layout.count,), 6e4)
    for encoder in (HostEncoder(payload), TorchEncoder(payload)):
        out = torch.empty(payload.layout.count)
        assert encoder.row(out, 1.0, ())
        assert not encoder.row(out, 1.0, [ones])


def test_spans_cover_every_bucket_once() -> None:
    model = Odd(torch.float32)
    for bucket_mb in (0.0003, 0.002, 1.0):
        payload = payload_of(model, "float32", bucket_mb)
        sizes = [sum(s.length for s in inside) for inside in spans(payload.layout)]
        starts = payload.layout.bucket_starts
        assert sizes == [b - a for a, b in itertools.pairwise(starts)]


def test_a_sparse_gradient_is_refused() -> None:
    net = nn.Embedding(10, 2, sparse=True)
    net(torch.tensor([1])).sum().backward()
    payload = Payload(net.named_parameters())
    for encoder in encoders(payload):
        encoder.begin()
        with pytest.raises(ConfigError, match=r"'weight' has a sparse.*sparse=False"):
            encoder.row(torch.empty(payload.layout.count), 1.0, ())


def test_a_model_whose_shapes_change_is_refused() -> None:
    """Kernels read addresses: a size that is no longer true must not be believed."""
    model = Odd(torch.float32)
    payload = payload_of(model, "float32", 1.0)
    encoder = HostEncoder(payload)
    model.gradients()
    model.big.data = model.big.data[:9]
    model.big.grad = torch.ones(9)
    with pytest.raises(ConfigError, match="'big' has 9 elements and had 5003"):
        encoder.row(torch.empty(payload.layout.count), 1.0, ())
    model.mean.data = torch.ones(2, dtype=torch.int64)
    for use in (payload.buffers.remember, payload.buffers.restore):
        with pytest.raises(ConfigError, match=r"has become 2 x torch\.int64"):
            use()
