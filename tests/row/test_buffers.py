"""Buffers around passes are remembered, restored and changed, by kernel and torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codedgrad import ConfigError
from codedgrad.row import tensors
from codedgrad.row.buffers import Buffers
from codedgrad.row.payload import Payload

INF = torch.inf


class Stateful(nn.Module):
    """Buffers of the types that models have; `strided` ones are for torch only."""

    def __init__(self, dtype: torch.dtype, *, strided: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=dtype))
        mean = torch.arange(6, dtype=dtype).reshape(2, 3)
        self.register_buffer("mean", mean.T if strided else mean)
        self.register_buffer("count", torch.tensor(5))
        self.register_buffer("mask", torch.tensor([0.0, -INF, INF]))
        self.register_buffer("empty", torch.ones(0))

    def run(self) -> None:
        """What a pass does to buffers."""
        self.mean += 0.25
        self.count += 1
        self.mask[0] -= 2.0

    def values(self) -> list[Tensor]:
        return [b.clone() for b in self.buffers()]


def changed(model: Stateful) -> tuple[Payload, Tensor]:
    """A row whose tail has the changes of one pass; the model is as before it."""
    payload = Payload(model.named_parameters(), model.named_buffers())
    payload.buffers.remember()
    model.run()
    payload.tail.fill(0.0)
    payload.buffers.restore()
    row = torch.zeros(payload.layout.count, dtype=payload.layout.dtype)
    row[payload.layout.gradients :] = payload.tail.values
    return payload, row


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_is_undone_and_done(dtype: torch.dtype, strided: bool) -> None:
    model = Stateful(dtype, strided=strided)
    before = model.values()
    payload, row = changed(model)
    assert all(map(torch.equal, model.values(), before))
    payload.buffers.apply(row)
    again = Stateful(dtype, strided=strided)
    again.run()
    assert all(map(torch.equal, model.values(), again.values()))


def test_kernel_and_torch_write_the_same_tail() -> None:
    for dtype in (torch.float32, torch.float64):
        tails = []
        for by_torch in (False, True):
            payload = Payload(
                (model := Stateful(dtype)).named_parameters(), model.named_buffers()
            )
            if by_torch:
                payload.buffers._copies = None
            payload.buffers.remember()
            model.run()
            payload.tail.fill(1.0)
            tails.append(payload.tail.values.clone())
        assert torch.equal(*tails)


class Many(nn.Module):
    """Buffers of every type that can travel, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        kinds = [torch.float32, torch.int64, torch.bfloat16, torch.float64, torch.bool]
        kinds += [torch.int32, torch.complex64]
        for i in range(21):
            values = torch.arange(i + 2).reshape(1, -1) % 2
            self.register_buffer(f"b{i}", values.to(kinds[i % len(kinds)]))

    def run(self) -> None:
        for b in self.buffers():
            b.copy_(~b if b.dtype == torch.bool else b + (2 if b.is_complex() else 3))


def test_buffers_of_one_type_are_changed_together() -> None:
    """As one by one."""
    payload, row = changed(model := Many())  # type: ignore[arg-type]
    noted = [b.clone() for b in model.buffers()]
    parts = payload.buffers.shaped(payload.tail.values[payload.layout.change_area])
    again = Many()
    again.run()
    for part, before, after in zip(parts, noted, again.buffers(), strict=True):
        assert torch.equal(part, tensors.change(after, before, torch.float32))
    payload.buffers.apply(row)
    assert all(map(torch.equal, model.buffers(), again.buffers()))


def test_counters_are_rounded_to_the_nearest() -> None:
    payload, row = changed(model := Stateful(torch.float32))
    payload.buffers.apply(row * 0.4)
    assert model.count == 5
    payload.buffers.apply(row * 0.6)
    assert model.count == 6


def test_counters_count_once_whatever_the_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    payload = Payload(net.named_parameters(), net.named_buffers())
    payload.buffers.remember()
    total = torch.zeros(payload.layout.count)
    for weight in (0.3, 0.3, 0.4):
        payload.buffers.restore()
        net(torch.randn(4, 2))
        payload.tail.fill(0.0)
        total[payload.layout.gradients :] += weight * payload.tail.values
    payload.buffers.restore()
    payload.scatter(total)
    assert net[1].num_batches_tracked == 1


def test_an_infinite_buffer_that_stays_is_no_nan() -> None:
    payload, row = changed(model := Stateful(torch.float32))
    assert torch.isfinite(row).all()
    payload.buffers.apply(row)
    assert model.mask.tolist() == [-2.0, -INF, INF]


def test_no_buffers() -> None:
    net = nn.Linear(2, 2)
    payload = Payload(net.named_parameters(), net.named_buffers())
    buffers = payload.buffers
    assert isinstance(buffers, Buffers)
    assert len(buffers) == 0
    buffers.remember()
    buffers.restore()
    buffers.apply(torch.zeros(payload.layout.count))


def test_a_buffer_that_becomes_another_is_refused() -> None:
    """Kernels read addresses: a size that is no longer true must not be believed."""
    model = Stateful(torch.float32)
    payload = Payload(model.named_parameters(), model.named_buffers())
    model.mean.data = torch.ones(2, dtype=torch.int64)
    for use in (payload.buffers.remember, payload.buffers.restore):
        with pytest.raises(ConfigError, match=r"has become 2 x torch\.int64"):
            use()
