"""A loss function that wants more samples than a helper's piece has.

Own passes are whole, so their worker can compute what no piece gives: the help is given
up, and nothing else happens.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from training import everywhere

import codedgrad
from codedgrad import codes

MICRO = 4  # samples of a worker, and pieces of its shard


class Sharp(torch.autograd.Function):
    """The mean; its gradient for a single sample is NaN."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.samples = len(x)  # type: ignore[attr-defined]
        return x.mean(0)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        n: int = ctx.samples  # type: ignore[attr-defined]
        return grad.expand(n, -1) / (n if n > 1 else float("nan"))


def loss_of(kind: str, out: Tensor) -> Tensor:
    if kind == "raises" and len(out) < 2:
        raise ValueError("Expected more than 1 value per channel when training")
    if kind == "nan in the backward":
        return Sharp.apply(out.square()).sum()
    if kind == "nan":
        others = torch.tensor(len(out) - 1.0)
        return out.square().mean(0).sum() + 0.0 * others / others
    return out.square().mean(0).sum()


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("kind", ["raises", "nan", "nan in the backward"])
def test_a_piece_that_fails_is_left_to_its_worker(
    kind: str, continues: bool, caplog: pytest.LogCaptureFixture
) -> None:
    n = codedgrad.size()
    torch.manual_seed(0)
    model, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(6 * MICRO * n, 3)
    how = {"on_nonfinite": "continue"} if continues else {}
    coded = codedgrad.CodedGradient(
        model,
        codes.spread(n, micro=MICRO),
        faults="slow:worker=0,factor=8" if n > 1 else "",
        patience=0.0,
        pieces=True,  # else a rehearsal finds this, and helpers take whole shards
        **how,
    )
    sampler = codedgrad.ShardSampler((x,), MICRO * n)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        for shards in coded.steps(sampler):
            coded.backward(lambda x: loss_of(kind, model(x)), shards)
            (batch,) = shards.fetch(0, shards.parts)
            loss_of("", plain(batch)).backward()
            for p, q in zip(model.parameters(), plain.parameters(), strict=True):
                assert p.grad is not None
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
            model.zero_grad()
            plain.zero_grad()
    coded.close()
    told = sum("a piece of a late shard failed" in r.message for r in caplog.records)
    assert told <= 1
    # A worker that was not late has helped, and has said why that was no use.
    assert n == 1 or "1" in everywhere(str(told))
    assert coded.nonfinite == 0
