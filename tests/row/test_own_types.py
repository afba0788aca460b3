"""Models of 16-bit parameters: their gradients travel in that type by default."""

from __future__ import annotations

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from torch import Tensor, nn

from codedgrad import codes
from codedgrad.exchange.plan import wired
from codedgrad.row.encoder import HostEncoder
from codedgrad.row.layout import Layout
from codedgrad.row.payload import Payload

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    return net.to(dtype)


def wire_of(net: nn.Module, wire: str | None = None) -> str:
    settings = ExchangeSettings(wire=wire)
    return Layout(net.named_parameters(), settings=settings).wire


@pytest.mark.parametrize("name", HALVES)
def test_the_default_is_the_own_type(name: str) -> None:
    net = model(HALVES[name])
    assert wire_of(net) == name
    assert wire_of(net, "float32") == "float32"
    net[2].float()
    assert wire_of(net) == "float32"  # of several types
    net[2].requires_grad_(requires_grad=False)
    assert wire_of(net) == name  # frozen parameters do not travel
    assert wire_of(model(torch.float32)) == wire_of(model(torch.float64)) == "float32"


def test_linear_codes_take_32_bits() -> None:
    settings = ExchangeSettings()
    assert wired(codes.cyclic(4, stragglers=1), settings).wire == "float32"
    assert wired(codes.spread(4), settings).wire is None
    named = ExchangeSettings(wire="bfloat16")  # refused later, with words
    assert wired(codes.cyclic(4, stragglers=1), named).wire == "bfloat16"


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("wire", [None, "float32"])
def test_no_copy_in_fp32(
    name: str, wire: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are read as they are, and come back as views of one vector."""
    dtype = HALVES[name]
    net = model(dtype)
    settings = ExchangeSettings(wire=wire, bucket_mb=0.0001)
    payload = Payload(net.named_parameters(), net.named_buffers(), settings=settings)
    net(torch.randn(4, 5).to(dtype)).float().square().sum().backward()
    want = {n: p.grad.clone() for n, p in net.named_parameters()}

    def copied(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr("codedgrad.row.runs.dense", copied)
    row = torch.full((payload.layout.count,), torch.nan)
    payload.tail.fill(1.0)
    assert HostEncoder(payload).row(row, 1.0, ())
    for p in net.parameters():
        p.grad = None
    payload.scatter(row)
    for n, p in net.named_parameters():
        assert torch.equal(p.grad, want[n])  # times 1: exact in the type
        assert p.grad.dtype == dtype
        assert p.grad.stride() == p.stride()
    places = {p.grad.untyped_storage().data_ptr() for p in net.parameters()}
    assert len(places) == 1
    payload.scatter(row)
    assert torch.equal(net[0].weight.grad, want["0.weight"] + want["0.weight"])
