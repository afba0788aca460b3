"""The way out: what goes into a row comes out of the decoded sum."""

from __future__ import annotations

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from torch import Tensor, nn

from codedgrad import ConfigError
from codedgrad.row.encoder import Encoder, HostEncoder, TorchEncoder, encoder_of
from codedgrad.row.payload import Payload


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    net[2].bias.requires_grad_(requires_grad=False)
    return net


def payload_of(net: nn.Module, **settings: object) -> Payload:
    return Payload(
        net.named_parameters(),
        net.named_buffers(),
        settings=ExchangeSettings(**settings),
    )


def encoded(
    payload: Payload, weight: float, loss: float, encoder: Encoder | None = None
) -> Tensor:
    row = torch.empty(payload.layout.count, dtype=payload.layout.dtype)
    payload.tail.fill(loss)
    (encoder or encoder_of(payload)).row(row, weight, ())
    return row


def test_round_trip() -> None:
    net = model()
    payload = payload_of(net)
    payload.buffers.remember()
    net(torch.randn(4, 2, 5, 5)).sum().backward()
    want = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    row = encoded(payload, 1.0, 2.5)
    payload.buffers.restore()
    assert net[1].num_batches_tracked == 0
    for p in net.parameters():
        p.grad = None
    assert payload.scatter(row) == 2.5
    got = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert set(got) == set(want) == {n for n, _ in net.named_parameters()} - {"2.bias"}
    for name, gradient in want.items():
        assert torch.equal(got[name], gradient)
        assert got[name].stride() == gradient.stride()
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, buffers[name])


class Odd(nn.Module):
    """Tied, channels_last, half-precision, empty and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5)
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.first.weight
        self.conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        self.narrow = nn.Linear(5, 5).bfloat16()
        self.unused = nn.Linear(5, 5)
        self.empty = nn.Parameter(torch.ones(0, 4))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.tied(self.first(x)))
        y = self.conv(x[None, None])
        return y.square().mean() + self.narrow(x.bfloat16()).float().square().mean()


@pytest.mark.parametrize("make", [HostEncoder, TorchEncoder])
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_a_sum_of_rows_is_the_mean_of_passes(wire: str, make: type) -> None:
    """Two passes, of weights 1/4 and 3/4, against the plain weighted mean."""
    net, weights = Odd(), (0.25, 0.75)
    payload = payload_of(net, wire=wire, bucket_mb=0.0002)
    encoder = make(payload)
    payload.buffers.remember()
    rows, losses, passes, means = [], [], [], []
    for seed, weight in enumerate(weights):
        payload.buffers.restore()
        loss = net(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)))
        loss.backward()
        losses.append(float(loss.detach()))
        rows.append(encoded(payload, weight, losses[-1], encoder))
        passes.append({n: p.grad for n, p in net.named_parameters()})
        means.append(net.norm.running_mean.clone())
        for p in net.parameters():
            p.grad = None
    payload.buffers.restore()
    loss = payload.scatter(rows[0] + rows[1])
    assert float(loss) == pytest.approx(0.25 * losses[0] + 0.75 * losses[1])
    rounded = getattr(torch, wire)
    for name, p in net.named_parameters():
        pair = [grads[name] for grads in passes]
        if name.startswith("unused") or name == "empty":
            assert pair == [None, None]
            assert p.grad is None
            continue
        leaves = [
            (w * g.float()).to(rounded) for w, g in zip(weights, pair, strict=True)
        ]
        want = (leaves[0].float() + leaves[1].float()).to(p.dtype)
        assert torch.equal(p.grad, want), name
        assert p.grad.dtype == p.dtype
        assert p.grad.stride() == p.stride()
    assert net.norm.num_batches_tracked == 1
    torch.testing.assert_close(net.norm.running_mean, 0.25 * means[0] + 0.75 * means[1])


def test_gradients_are_views_and_accumulate() -> None:
    net = nn.Linear(2, 2)
    payload = payload_of(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, 3.0)
    row = encoded(payload, 1.0, 0.0)
    for p in net.parameters():
        p.grad = None
    payload.scatter(row)
    tail = row[payload.layout.gradients :].clone()
    place = payload.layout.view(0, row)
    assert net.weight.grad.data_ptr() == place.data_ptr()
    del row, place  # the views keep the memory
    assert (net.weight.grad == 3.0).all()
    payload.scatter(torch.cat([net.bias.grad, net.weight.grad.flatten(), tail]))
    assert (net.weight.grad == 6.0).all()


def test_a_parameter_nobody_used_keeps_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    payload = payload_of(net)
    net[0](torch.ones(1, 2)).sum().backward()
    row = encoded(payload, 0.5, 0.0)
    for p in net.parameters():
        p.grad = None
    payload.scatter(row)
    assert net[0].weight.grad is not None
    assert net[1].weight.grad is None


def test_a_gradient_that_was_given_back_was_used() -> None:
    net = nn.Linear(2, 2)
    payload = payload_of(net)
    payload.tail.fill(0.0, [True, False])
    assert payload.tail.values[payload.layout.used_area].tolist() == [1.0, 0.0]
    net.bias.grad = torch.ones(2)
    payload.tail.fill(torch.tensor(2.0), [False, False])
    assert payload.tail.values[payload.layout.used_area].tolist() == [0.0, 1.0]
    assert payload.tail.values[payload.layout.loss_place] == 2.0


def test_flags_and_loss_are_read_from_the_tail_on_the_host() -> None:
    net = nn.Linear(2, 2)
    payload = payload_of(net)
    total = torch.ones(payload.layout.count)
    tail = torch.zeros(payload.layout.count - payload.layout.gradients)
    tail[payload.layout.used_area] = torch.tensor([0.0, 0.5])
    tail[payload.layout.loss_place] = 7.0
    assert payload.scatter(total, tail.numpy()) == 7.0
    assert net.weight.grad is None
    assert net.bias.grad.tolist() == [1.0, 1.0]


def test_an_infinite_buffer_that_stays_is_no_nan() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    payload = payload_of(net)
    payload.buffers.remember()
    payload.scatter(encoded(payload, 0.5, 0.0))
    assert net.mask.tolist() == [0.0, -torch.inf]


def test_channels_last() -> None:
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    payload = payload_of(net)
    net(torch.randn(1, 4, 5, 5)).sum().backward()
    want = net.weight.grad.clone()
    row = encoded(payload, 1.0, 0.0)
    net.weight.grad = net.bias.grad = None
    payload.scatter(row)
    assert torch.equal(net.weight.grad, want)
    assert net.weight.grad.stride() == net.weight.stride()


def test_a_sparse_gradient_is_refused() -> None:
    net = nn.Embedding(4, 2, sparse=True)
    payload = payload_of(net)
    net(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="'weight' has a sparse gradient"):
        encoded(payload, 1.0, 0.0)
