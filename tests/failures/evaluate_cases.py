"""Cases of job.py in which an evaluation goes wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from training import DATA, criterion, last

import codedgrad
from codedgrad import codes


def evaluate(
    model: nn.Module, data: Any = DATA, more: Any = None, size: int = 4
) -> None:
    """Evaluate; nobody stands in for the worker at fault, so its fault is met."""

    def fn(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"loss": criterion(model(x), y), "n": len(y), **(more or dict)()}

    code = codes.uncoded(codedgrad.size())
    codedgrad.evaluate(model, data, fn, 4, code=code)


def evaluation_of_other_weights() -> None:
    model = nn.Linear(4, 3)
    evaluate(model)
    if last():
        model.bias.data[0] += 1.0
    evaluate(model)


def evaluation_of_fewer_samples() -> None:
    x, y = DATA.tensors
    evaluate(nn.Linear(4, 3), (x[:60], y[:60]) if last() else (x, y))


def evaluation_of_other_samples() -> None:
    x, y = DATA.tensors
    evaluate(nn.Linear(4, 3), (x.flip(0), y) if last() else (x, y))


def evaluation_with_other_metrics() -> None:
    evaluate(nn.Linear(4, 3), more=lambda: {"hits": torch.zeros(2 if last() else 3)})


def evaluation_with_large_sums_of_one() -> None:
    width = 100 if last() else 1
    evaluate(nn.Linear(4, 3), more=lambda: {"hits": torch.zeros(width, width)})


def evaluation_that_raises() -> None:
    def fault() -> dict[str, Any]:
        return {"xyzzy": {}["xyzzy"] if last() else 1}

    evaluate(nn.Linear(4, 3), more=fault)


def evaluation_that_reduces() -> None:
    evaluate(nn.Linear(4, 3), more=lambda: {"m": codedgrad.allreduce(1.0)})


def evaluation_of_nothing() -> None:
    evaluate(nn.Linear(4, 3), (torch.zeros(0, 4), torch.zeros(0)))
