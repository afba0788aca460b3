"""Gradients that travel in 16 bits: rounded, but the same bits whoever is late."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training import DELAYS, coded, everywhere, plain

import codedgrad
from codedgrad import codes
from codedgrad.hvd.optimizer import _attached, detach

WIRES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS = 60


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("bucket_mb", [0.0005, None])
def test_delays_change_no_bit(wire: str, bucket_mb: float | None) -> None:
    """Micro rows of back-ups and own rows of shards meet, in every mixture."""
    n = codedgrad.size()
    code = codes.spread(n, micro=4, copies=min(2, max(1, n - 1)))
    got = coded(code, STEPS, faults=DELAYS, wire=wire, bucket_mb=bucket_mb)
    assert len(set(everywhere(got[0]))) == 1
    assert got == coded(code, STEPS, wire=wire, overlap=False)
    if codedgrad.rank() == 0:
        dtype = WIRES[wire]
        assert got == plain(code.tree, code.parts, STEPS, wire=dtype, rows=4)


@pytest.mark.parametrize("which", ["staircase", "fractional", "uncoded"])
def test_other_codes(which: str) -> None:
    n = codedgrad.size()
    copies = next((d for d in range(2, n + 1) if n % d == 0), 1)
    code, rows = {
        "staircase": (codes.scheduled(n, copies=min(2, n), order="staircase"), 1),
        "fractional": (codes.fractional(n, copies=copies, micro=2), 2 * copies),
        "uncoded": (codes.uncoded(n, micro=3), 3),
    }[which]
    got = coded(code, 20, faults=DELAYS, wire="bfloat16")
    assert len(set(everywhere(got[0]))) == 1
    if codedgrad.rank() == 0:
        want = plain(code.tree, code.parts, 20, wire=torch.bfloat16, rows=rows)
        assert got == want


@pytest.mark.parametrize("wire", WIRES)
def test_half_the_bytes_and_close_to_fp32(wire: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 3))
    data = TensorDataset(torch.randn(96, 6), torch.randint(0, 3, (96,)))
    code = codes.uncoded(codedgrad.size())
    gradients, sent = [], []
    for how in ("float32", wire):
        model.zero_grad()
        gradient = codedgrad.CodedGradient(model, code, wire=how)
        shards = next(gradient.steps(codedgrad.ShardSampler(data, 96)))
        gradient.backward(lambda x, y: nn.functional.cross_entropy(model(x), y), shards)
        gradients.append([p.grad.clone() for p in model.parameters()])
        codedgrad.barrier()
        sent.append(gradient._exchange.counters()["bytes_sent"])
        gradient.close()
    bits = 8 if wire == "bfloat16" else 11
    largest = max(float(g.abs().max()) for g in gradients[0])
    for exact, rounded in zip(*gradients, strict=True):
        assert torch.equal(rounded.to(WIRES[wire]).float(), rounded)
        assert (exact - rounded).abs().max() <= 4 * largest / (1 << bits)
    if codedgrad.size() > 1:
        assert sent[1] < 0.6 * sent[0]


def test_tiny_model_and_drop_in() -> None:
    """One element that travels narrow, in slices of 16."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        wire="bfloat16",
    )
    (model(torch.ones(1, 1)) * (1.0 + 2**-12)).sum().backward()
    assert float(model.weight.grad) == 1.0
    detach(optimizer)


def mean_of(gradients: list[list[torch.Tensor]], tree: Any) -> list[torch.Tensor]:
    """The documented mean in the gradients' own type: rounded leaves, added in fp32."""
    dtype, n = gradients[0][0].dtype, len(gradients)

    def total(node: int) -> list[torch.Tensor]:
        if tree.left[node] < 0:
            leaf = gradients[int(tree.start[node])]
            return [(g.float() * (1.0 / n)).to(dtype).float() for g in leaf]
        sides = total(int(tree.left[node])), total(int(tree.right[node]))
        return [a + b for a, b in zip(*sides, strict=True)]

    return [t.to(dtype) for t in total(int(tree.root))]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("face", ["explicit", "drop-in"])
def test_models_of_16_bits_travel_in_their_own_type(face: str, wire: str) -> None:
    n, rank, dtype = codedgrad.size(), codedgrad.rank(), WIRES[wire]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 3)).to(dtype)
    code = codes.uncoded(n)
    data = TensorDataset(torch.randn(8 * n, 6).to(dtype), torch.randn(8 * n, 3))

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(x).float(), y)

    def own() -> list[torch.Tensor]:
        return [p.grad for p in model.parameters()]

    sampler = codedgrad.ShardSampler(data, 8 * n)
    (shards,) = sampler.steps(n)
    batches = [shards.fetch(part) for part in range(n)]
    each = []
    for batch in batches:
        model.zero_grad()
        loss_fn(*batch).backward()
        each.append(own())
    want = mean_of(each, code.tree)
    sent = []
    for told in (None, "float32"):
        model.zero_grad()
        if face == "explicit":
            gradient = codedgrad.CodedGradient(model, code, wire=told)
            (shards,) = gradient.steps(sampler)
            gradient.backward(loss_fn, shards)
            exchange = gradient._exchange
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            codedgrad.DistributedOptimizer(optimizer, wire=told)
            loss_fn(*batches[rank]).backward()
            exchange = _attached[optimizer]._mean._exchange
        got = own()
        codedgrad.barrier()
        sent.append(exchange.counters()["bytes_sent"])
        gradient.close() if face == "explicit" else detach(optimizer)
        assert [g.dtype for g in got] == [dtype] * len(got)
        if told is None:
            assert all(map(torch.equal, got, want))
    if n > 1:
        assert sent[0] < 0.6 * sent[1]
