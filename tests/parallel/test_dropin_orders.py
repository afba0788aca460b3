"""The drop-in in every order of what a training loop does.

Two loops run side by side: one with the drop-in on every worker's own samples, and one
of plain torch, in one process, on the samples of all workers together. Small integers
make sums exact, so with 1, 2 or 4 workers parameters, gradients and buffers are equal.
Nothing is reset between two orders but the values, so what an order leaves behind
(passes, a failed backward) is there in the next one.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import codedgrad
from codedgrad.hvd.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Iterator

# forward; backward of its first loss, of its second; step; zero_grad; a forward whose
# backward raises half-way
EVENTS = "FBCSZE"
SAMPLE = 150  # orders of a length, where not all are tried


class _Raise(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *_: Any) -> Any:
        raise ZeroDivisionError("half-way")


class Net(nn.Module):
    """Two layers of integers, and a buffer that counts what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 1)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("forwards", torch.tensor(0))
        self.double()
        self.reset()

    def reset(self) -> None:
        with torch.no_grad():
            for i, t in enumerate([*self.parameters(), *self.buffers()]):
                t.copy_((torch.arange(t.numel()).view(t.shape) + i) % 3 - 1)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        if self.training:
            self.seen += x.mean(0)
            self.forwards += 1
        hidden = self.first(x)
        return self.second(_Raise.apply(hidden) if fail else hidden)


class Loop:
    """A training loop of which the order is given."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: Net, own: slice):
        self.optimizer, self.model, self.own = optimizer, model, own
        self.losses: list[Tensor] = []

    def do(self, event: str, x: Tensor, y: Tensor) -> None:
        x, y = x[self.own], y[self.own]
        if event == "F":
            out = self.model(x)
            self.losses = [(out - y).pow(2).mean(), out.sum() / len(out)]
        elif event in "BC":
            self.losses["BC".index(event)].backward(retain_graph=True)
        elif event == "S":
            self.optimizer.step()
            self.losses = []
        elif event == "Z":
            self.optimizer.zero_grad()
        else:
            with pytest.raises(ZeroDivisionError):
                self.model(x, fail=True).mean().backward()

    def values(self) -> list[Tensor | None]:
        parameters = list(self.model.parameters())
        return [*parameters, *(p.grad for p in parameters)]


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) or (codedgrad.size() not in (1, 2, 4) and close(a, b))


def close(a: Tensor, b: Tensor) -> bool:
    """A third of a number is rounded."""
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def orders(length: int) -> Iterator[str]:
    """All that plain torch permits: a backward needs a forward since the last step."""
    for order in itertools.product(EVENTS, repeat=length):
        ready = False
        for event in order:
            if event in "BC" and not ready:
                break
            ready = event == "F" or (ready and event != "S")
        else:
            yield "".join(order)


def chosen() -> list[str]:
    """All orders of five events and some of six; some of both with several workers."""
    five, six = list(orders(5)), list(orders(6))
    some = random.Random(5).sample
    if codedgrad.size() == 1:
        return five + some(six, 2 * SAMPLE)
    return some(five, SAMPLE) + some(six, SAMPLE)


@pytest.mark.parametrize("passes", [1, 2])
def test_all_orders_are_those_of_plain_torch(passes: int) -> None:
    n, rank = codedgrad.size(), codedgrad.rank()
    loops = []
    for own in (slice(2 * rank, 2 * rank + 2), slice(2 * n)):
        model = Net()
        sgd = torch.optim.SGD(model.parameters(), lr=0.25)
        loops.append(Loop(sgd, model, own))
    mine, plain = loops
    codedgrad.DistributedOptimizer(
        mine.optimizer,
        mine.model.named_parameters(),
        model=mine.model,
        backward_passes_per_step=passes,
        overlap=False,
    )
    generator = torch.Generator().manual_seed(1)
    data = torch.randint(-2, 3, (64, 3, 2 * n), generator=generator).double()
    for number, order in enumerate(chosen()):
        for loop in loops:
            loop.model.reset()
            loop.losses = []
        mine.optimizer.zero_grad()
        plain.optimizer.zero_grad()
        # With several workers, an exchange makes buffers and gradients the same, and
        # after a step no gradient is left over.
        for place, event in enumerate(order):
            x = data[(number + place) % 64]
            for loop in loops:
                loop.do(event, x[:2].T, x[2:].T)
            if n == 1 or event == "S":
                for a, b in zip(mine.values(), plain.values(), strict=True):
                    assert same(a, b), f"{order} after {place + 1}"
        if n == 1:
            assert torch.equal(mine.model.seen, plain.model.seen), order
            assert torch.equal(mine.model.forwards, plain.model.forwards), order
    # All changes of buffers that are still under way travel with one more exchange.
    for loop in loops:
        loop.do("F", data[0][:2].T, data[0][2:].T)
        for _ in range(passes):
            loop.do("B", data[0][:2].T, data[0][2:].T)
    assert same(mine.model.seen, plain.model.seen)
    assert torch.equal(mine.model.forwards, plain.model.forwards)
    detach(mine.optimizer)
