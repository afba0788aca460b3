"""Loss functions, collate functions and their values that differ on one worker."""

from __future__ import annotations

import argparse
import functools
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_loss_functions import OWN, data, net, train
from torch import Tensor, nn
from torch.nn import functional as F

import codedgrad
from codedgrad import codes
from codedgrad.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable


def collate(items: list[Any]) -> Any:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


def collate_scaled(items: list[Any]) -> Any:
    return torch.stack([2 * x for x, _ in items]), torch.stack([y for _, y in items])


def smooth(model: nn.Module, x: Tensor, y: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(model(x), y, label_smoothing=smoothing)


def of_criterion(model: nn.Module, criterion: Any) -> Callable[..., Tensor]:
    return lambda x, y: criterion(model(x), y)


def of_default(model: nn.Module, smoothing: float) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, smoothing: float = smoothing) -> Tensor:
        return smooth(model, x, y, smoothing)

    return loss


def of_keyword(model: nn.Module, smoothing: float) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, *, smoothing: float = smoothing) -> Tensor:
        return smooth(model, x, y, smoothing)

    return loss


def of_closure(model: nn.Module, scale: Any) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return float(scale) * F.cross_entropy(model(x), y)

    return loss


OTHERS: dict[str, Callable[[nn.Module, bool], Any]] = {
    "code": lambda m, last: (
        (lambda x, y: F.cross_entropy(m(x), y))
        if last
        else (lambda x, y: F.multi_margin_loss(m(x), y))
    ),
    "constant": lambda m, last: (
        (lambda x, y: 0.5 * F.cross_entropy(m(x), y))
        if last
        else (lambda x, y: 1.5 * F.cross_entropy(m(x), y))
    ),
    "function": lambda m, last: of_criterion(
        m, F.multi_margin_loss if last else F.cross_entropy
    ),
    "module": lambda m, last: of_criterion(
        m, nn.MultiMarginLoss() if last else nn.CrossEntropyLoss()
    ),
    "its weights": lambda m, last: of_criterion(
        m, nn.CrossEntropyLoss(weight=torch.ones(3) + last)
    ),
    "partial": lambda m, last: functools.partial(smooth, m, smoothing=0.1 + 0.1 * last),
    "held partial": lambda m, last: of_criterion(
        m, functools.partial(F.cross_entropy, label_smoothing=0.1 + 0.1 * last)
    ),
    "keyword": lambda m, last: of_keyword(m, 0.1 + 0.1 * last),
    "another type": lambda m, last: of_closure(m, 1 if last else 1.5),
    "default": lambda m, last: of_default(m, 0.1 + 0.1 * last),
    "closure": lambda m, last: of_closure(m, 1.0 + last),
    "tensor": lambda m, last: of_closure(m, torch.ones(()) + last),
    "collate": lambda _, last: collate_scaled if last else collate,
}


def last() -> bool:
    return codedgrad.rank() == codedgrad.size() - 1


@pytest.mark.parametrize("kind", OTHERS)
def test_another_function_on_one_worker(kind: str) -> None:
    if codedgrad.size() == 1:
        return
    model = net()
    made, more = OTHERS[kind](model, last()), {}
    if kind == "collate":
        dataset = list(zip(*data(), strict=True))
        sampler = codedgrad.ShardSampler(
            dataset, OWN * codedgrad.size(), collate_fn=made
        )
        made, more = OTHERS["code"](model, False), {"sampler": sampler}
    with pytest.raises(MismatchError, match="all need the same functions"):
        train(model, made, **more)


def test_another_function_later() -> None:
    if codedgrad.size() == 1:
        return
    model, seen = net(), []

    def one(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    def other(x: Tensor, y: Tensor) -> Tensor:
        return F.multi_margin_loss(model(x), y)

    n = codedgrad.size()
    coded = codedgrad.CodedGradient(model, codes.uncoded(n, micro=1))
    sampler = codedgrad.ShardSampler(data(), OWN * n)

    def steps() -> None:
        for step, shards in enumerate(coded.steps(sampler)):
            coded.backward(other if step == 1 or (last() and step) else one, shards)
            seen.append(step)

    with pytest.raises(
        MismatchError, match=r"functions of step 2: .* loss function = "
    ):
        steps()
    assert seen == [0, 1]
    coded.close()


class Scaled(nn.Module):
    """A criterion with an attribute that it does not show."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return self.factor * F.cross_entropy(out, y)


def test_an_attribute_of_a_criterion_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model, criterion = net(), Scaled(0.5 + last())
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(model, lambda x, y: criterion(model(x), y))
    told = any("'factor' of a Scaled" in r.getMessage() for r in caplog.records)
    assert told == (codedgrad.size() > 1 and codedgrad.rank() == 0)


@pytest.mark.parametrize("kind", ["rank", "device", "log"])
def test_what_is_each_workers_own(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    rank = codedgrad.rank()
    own = {"rank": rank, "device": f"cuda:{rank}", "log": rank == 0}[kind]
    model = net()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        assert str(own)
        return F.cross_entropy(model(x), y)

    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(model, loss)
    assert not [r for r in caplog.records if "different values" in r.getMessage()]


@pytest.mark.parametrize("kind", ["margin", "settings.alpha"])
def test_a_value_of_ones_own_is_told(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, margin = net(), 3 + 4 * last()
    settings = argparse.Namespace(alpha=0.1 + 0.4 * last(), clock=time.perf_counter())

    def by_number(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) * margin

    def by_object(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) * settings.alpha

    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(model, by_number if kind == "margin" else by_object)
    found = [r.getMessage() for r in caplog.records]
    told = any(f"different values of {kind}." in text for text in found)
    assert told == (codedgrad.size() > 1 and codedgrad.rank() == 0)
