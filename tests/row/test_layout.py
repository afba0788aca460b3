"""The payload: what goes into a row comes out of the decoded sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codedgrad import ConfigError, codes
from codedgrad.job import _engine
from codedgrad.row.encoder import encoder_of
from codedgrad.row.layout import Payload


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    net[2].bias.requires_grad_(requires_grad=False)
    return net


def payload_of(net: nn.Module, **settings: object) -> Payload:
    return Payload(net.named_parameters(), net.named_buffers(), **settings)


def encoded(
    net: nn.Module, payload: Payload, weight: float, loss: float
) -> torch.Tensor:
    row = torch.empty(payload.count, dtype=payload.dtype)
    payload.fill_tail(loss)
    encoder_of(payload).row(row, weight, ())
    return row


def test_round_trip() -> None:
    net = model()
    payload = payload_of(net)
    payload.remember_buffers()
    net(torch.randn(4, 2, 5, 5)).sum().backward()
    want = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    row = encoded(net, payload, 1.0, 2.5)
    payload.restore_buffers()
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


def test_gradients_are_views_and_accumulate() -> None:
    net = nn.Linear(2, 2)
    payload = payload_of(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, 3.0)
    row = encoded(net, payload, 1.0, 0.0)
    for p in net.parameters():
        p.grad = None
    payload.scatter(row)
    assert net.weight.grad.untyped_storage().data_ptr() == row.data_ptr()
    payload.scatter(row.clone())
    assert (net.weight.grad == 6.0).all()


def test_a_parameter_nobody_used_keeps_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    payload = payload_of(net)
    net[0](torch.ones(1, 2)).sum().backward()
    row = encoded(net, payload, 0.5, 0.0)
    for p in net.parameters():
        p.grad = None
    payload.scatter(row)
    assert net[0].weight.grad is not None
    assert net[1].weight.grad is None


def test_counters_count_once_whatever_the_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    payload = payload_of(net)
    payload.remember_buffers()
    total = torch.zeros(payload.count)
    for weight in (0.3, 0.3, 0.4):
        payload.restore_buffers()
        net(torch.randn(4, 2)).sum().backward()
        total += encoded(net, payload, weight, 0.0)
        for p in net.parameters():
            p.grad = None
    payload.restore_buffers()
    payload.scatter(total)
    assert net[1].num_batches_tracked == 1


def test_an_infinite_buffer_that_stays_is_no_nan() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    payload = payload_of(net)
    payload.remember_buffers()
    payload.scatter(encoded(net, payload, 0.5, 0.0))
    assert net.mask.tolist() == [0.0, -torch.inf]


def test_double_precision_and_channels_last() -> None:
    assert payload_of(model().double()).dtype == torch.float64
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    payload = payload_of(net)
    net(torch.randn(1, 4, 5, 5)).sum().backward()
    want = net.weight.grad.clone()
    row = encoded(net, payload, 1.0, 0.0)
    net.weight.grad = net.bias.grad = None
    payload.scatter(row)
    assert torch.equal(net.weight.grad, want)
    assert net.weight.grad.stride() == net.weight.stride()


def test_every_worker_owns_something_and_buckets_cover() -> None:
    payload = payload_of(nn.Linear(1, 1), workers=8)
    assert payload.count >= 128
    payload = payload_of(nn.Linear(100, 100), bucket_mb=0.01)
    starts = payload.bucket_starts
    assert starts[0] == 0
    assert starts[-1] == payload.count
    assert starts == sorted(set(starts))
    assert len(starts) > 3


def test_bad_models() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        payload_of(frozen)
    apart = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match=r"several devices \(cpu, meta\)"):
        payload_of(apart)
    with pytest.raises(ConfigError, match=r"on meta.*model.cuda"):
        payload_of(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match="is complex"):
        payload_of(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="bucket_mb"):
        payload_of(nn.Linear(2, 2), bucket_mb=0)
    net = nn.Embedding(4, 2, sparse=True)
    payload = payload_of(net)
    net(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="'weight' has a sparse gradient"):
        encoded(net, payload, 1.0, 0.0)


def test_more_than_two_to_the_31_elements() -> None:
    """A dry run: memory is asked for, and touched in the last bucket only."""
    first, workers = 7, 4
    big = nn.Parameter(torch.empty((1 << 31) + 77), requires_grad=True)
    small = nn.Parameter(torch.ones(first))
    payload = Payload([("small", small), ("big", big)], workers=workers)
    assert payload.offset(0) == big.numel()
    row = torch.empty(payload.count)
    assert payload.view(0, row).storage_offset() == big.numel()
    small.grad = torch.arange(float(first))
    payload.fill_tail(1.0)
    last = len(payload.bucket_starts) - 2
    assert encoder_of(payload).bucket(last, row, 0.5, ())
    assert torch.equal(payload.view(0, row), 0.5 * small.grad)
    # The engine's side: offsets, and tags for so many buckets.
    hub = _engine.LocalHub(workers)
    engine = _engine.Engine.over_local(hub, 0)
    tree = codes.spread(workers).tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    exchange = _engine.Exchange(
        engine,
        _engine.SessionSettings(plan=plan, bucket_starts=payload.bucket_starts),
    )
    buffer = exchange.acquire()
    assert buffer.bytes == 4 * payload.count > 1 << 33
    exchange.close()
    engine.stop(0.0)
