"""One worker, no launcher: a cell that fails, then the next one. See test_notebook.py.

Every failing cell is followed by a step whose gradient is compared with plain torch.
Integers make the sums exact.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Callable

X = torch.arange(64.0).reshape(16, 4) % 7


def model_of_integers() -> nn.Module:
    """Several buckets, with bucket_mb=1e-5: the first are sent when an error comes."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 1))
    for i, p in enumerate(model.parameters()):
        p.data = torch.full_like(p, 1.0 + i % 2)
    return model


class Cell:
    """Fails in one call of the loss function, in one of several ways."""

    def __init__(self, model: nn.Module, way: str, call: int) -> None:
        self.model, self.way, self.call, self.calls = model, way, call, 0

    def loss(self, x: Tensor) -> Any:
        out = self.model(x).sum() / 16
        self.calls += 1
        if self.calls != self.call:
            return out
        if self.way == "raises":
            raise KeyError("no such token")
        if self.way == "exits":
            raise SystemExit(1)
        if self.way == "is interrupted":
            raise KeyboardInterrupt
        if self.way == "has no gradient":
            return out.detach()
        if self.way == "is no number":
            return out * float("nan")
        if self.way == "is a tuple":
            return out, "one"
        # The gradient of the first layer only: the buckets of the others are sent.
        return out + (self.model[0].weight[0, 0] * 0.0).sqrt()


WAYS = (
    *("raises", "exits", "is interrupted", "has no gradient", "is no number"),
    *("is a tuple", "has a bad gradient"),
)


def usual_loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).sum() / len(x)


def gradients(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    loss(X).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def check(model: nn.Module, want: list[Tensor], cell: str) -> None:
    got = [p.grad for p in model.parameters()]
    for g, w in zip(got, want, strict=True):
        assert g is not None, cell
        # backward leaves the mean over micro-batches of their losses.
        torch.testing.assert_close(g, w, rtol=0, atol=0, msg=cell)


def coded_cells() -> None:
    for wrong in ({"wire": "int8"}, {"faults": "slow:worker=9"}, {"log": "/proc/no"}):
        with contextlib.suppress(codedgrad.ConfigError):
            codedgrad.CodedGradient(model_of_integers(), **wrong)
    for overlap in (True, False):
        model = model_of_integers()
        usual = usual_loss(model)
        want = gradients(model, usual)
        coded = codedgrad.CodedGradient(
            model, overlap=overlap, bucket_mb=1e-5, same_bits=True
        )
        (shards,) = coded.steps(codedgrad.ShardSampler((X,), 16))
        for way in WAYS:
            for call in range(1, coded.code.micro + 1):
                cell = Cell(model, way, call)
                step = coded.step
                with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):
                    coded.backward(cell.loss, shards)
                assert coded.step == step, f"the loss {way}: nothing was raised"
                model.zero_grad()
                coded.backward(usual, shards)
                check(model, want, f"after a loss that {way} in call {call}")
                assert coded.step == step + 1
        coded.close()


def drop_in_cells() -> None:
    model = model_of_integers()
    want = gradients(model, usual_loss(model))
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    with contextlib.suppress(codedgrad.ConfigError):
        codedgrad.DistributedOptimizer(sgd, model.named_parameters(), wire="int8")
    optimizer = codedgrad.DistributedOptimizer(
        sgd, model.named_parameters(), model=model
    )
    for _ in range(3):
        with contextlib.suppress(KeyError):
            model(X)
            raise KeyError("in the loop")
        optimizer.zero_grad()
        (model(X).sum() / len(X)).backward()
        check(model, want, "the drop-in")
        optimizer.step()


if __name__ == "__main__":
    codedgrad.init(timeout_s=10)
    assert codedgrad.size() == 1
    coded_cells()
    drop_in_cells()
    print("all cells are right")
