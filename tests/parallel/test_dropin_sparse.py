"""Sparse gradients beside dense ones, in more than one exchange of a step."""

from __future__ import annotations

import torch
from parallel.suite import distributed
from torch import Tensor, nn

import codedgrad.hvd as hvd


def test_a_second_exchange_without_the_embedding() -> None:
    """Two losses a step: what the first leaves sparse is added to by the second."""

    def both(module: nn.ModuleDict, number: int) -> tuple[Tensor, Tensor]:
        x = torch.full((2, 3), float(number))
        return module["words"](torch.tensor([number, 7])).sum(), module["out"](x).sum()

    def made() -> nn.ModuleDict:
        torch.manual_seed(3)
        return nn.ModuleDict(
            {"words": nn.Embedding(10, 3, sparse=True), "out": nn.Linear(3, 1)}
        )

    model, truth = made(), made()
    optimizer = distributed(model)
    plain = torch.optim.SGD(truth.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        for loss in both(model, hvd.rank()):
            loss.backward()
        optimizer.step()
        plain.zero_grad()
        for number in range(hvd.size()):
            for loss in both(truth, number):
                (loss / hvd.size()).backward()
        plain.step()
    for got, want in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(got, want)
    hvd.detach(optimizer)
