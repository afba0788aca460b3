"""Weights that are answers, losses that draw, batches that cannot be cut.

They are refused, or helpers take whole shards, and the gradient is the right one.
"""

from __future__ import annotations

import logging
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from test_loss_functions import OWN, by_deviation, contrastive, data, net, slow, train
from test_watch import nobody_ends_the_job as nobody_ends_the_job
from torch import Tensor, nn
from torch.nn import functional as F

import codedgrad
from codedgrad import ConfigError, codes

if TYPE_CHECKING:
    from collections.abc import Callable

# ---- the weight is a number of right answers ----


def right(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), (out.argmax(1) == y).sum()


def right_number(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), int((out.argmax(1) == y).sum())


def sum_and_right(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y, reduction="sum"), (out.argmax(1) == y).sum()


def confidence(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), out.detach().softmax(1).amax(1).sum()


WAYS: dict[str, dict[str, Any]] = {
    "pieces": {},
    "late": {"faults": ""},
    "shards": {"pieces": False},
    "same bits": {"same_bits": True},
    "nobody helps": {"code": "uncoded"},
}


def way(name: str) -> dict[str, Any]:
    how = dict(WAYS[name])
    if "faults" in how:
        how["faults"] = slow()
    if "code" in how:
        how["code"] = codes.uncoded(codedgrad.size(), micro=1)
    return how


def many() -> codedgrad.ShardSampler:
    """Enough samples for every worker to see it by itself, also in a micro-batch."""
    n, g = codedgrad.size(), torch.Generator().manual_seed(3)
    x, y = torch.randn(256 * n, 5, generator=g), torch.arange(256 * n) % 3
    return codedgrad.ShardSampler((x, y), 64 * n)


ANSWERS = [(right, name) for name in WAYS]
ANSWERS += [(right_number, "pieces"), (sum_and_right, "shards")]
ANSWERS += [(confidence, "nobody helps")]


@pytest.mark.parametrize(("kind", "name"), ANSWERS)
def test_answers_are_no_weight(
    kind: Callable[..., Any], name: str, nobody_ends_the_job: Any
) -> None:
    model = net()
    values = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match=r'return loss, \{"accuracy": accuracy\}'):
        train(model, lambda x, y: kind(model(x), y), sampler=many(), **way(name))
    for p, value in zip(model.parameters(), values, strict=True):
        assert torch.equal(p, value)


def hard(out: Tensor, y: Tensor) -> Any:
    """The mean over the samples that the model finds hard, and their number."""
    loss = F.cross_entropy(out, y, reduction="none")
    chosen = loss.detach() > 1.0
    return loss[chosen].mean(), chosen.sum()


def picky(out: Tensor, y: Tensor) -> Any:
    """A mean over some labels of a model that takes no other values."""
    if not out.detach().abs().max() < 1.0:
        raise ValueError("these are not the values that I know")
    return F.cross_entropy(out, y, ignore_index=0), (y != 0).sum()


def by_lot(out: Tensor, y: Tensor) -> Any:
    chosen = torch.rand(len(y)) < 0.5
    loss = F.cross_entropy(out, y, reduction="none")
    return loss[chosen].mean(), chosen.sum()


def by_chance(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), 1000 * len(y) + os.urandom(1)[0]


RIGHT = [(hard, name) for name in WAYS]
RIGHT += [(picky, "pieces"), (by_lot, "late"), (by_chance, "pieces")]


@pytest.mark.parametrize(("kind", "name"), RIGHT)
def test_weights_that_are_right(kind: Callable[..., Any], name: str) -> None:
    model, plain, n = net(), net(), codedgrad.size()

    def compare(shards: Any) -> None:
        if kind not in (hard, picky):
            return
        weighted, total = [], 0.0
        for shard in range(n):
            micro = shards.parts // n
            x, y = shards.fetch(micro * shard, micro * shard + micro)
            loss, weight = kind(plain(x), y)
            weighted.append(loss * weight)
            total += float(weight)
        (sum(weighted) / total).backward()  # type: ignore[attr-defined]
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        plain.zero_grad()

    train(model, lambda x, y: kind(model(x), y), compare, **way(name))


# ---- losses that draw random numbers ----


def dropped(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda out, y: kind(F.dropout(out, 0.1), y)


def views(out: Tensor, _y: Tensor) -> Tensor:
    """Each sample is to be told from the others by two views of it."""
    one, other = F.dropout(out, 0.2), F.dropout(out, 0.2)
    return F.cross_entropy(one @ other.T, torch.arange(len(out)))


def numpy_noise(out: Tensor, y: Tensor) -> Tensor:
    noise = np.random.standard_normal(out.shape)  # noqa: NPY002 (as users draw)
    return by_deviation(out + 0.01 * torch.as_tensor(noise, dtype=out.dtype), y)


def masked(out: Tensor, y: Tensor) -> Any:
    mask = torch.rand(out.shape) < 0.3
    return (mask * out.square()).sum() / mask.sum(), mask.sum()


def scaled(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(random.uniform(0.5, 1.0) * out, y)


def chosen_action(out: Tensor, _y: Tensor) -> Tensor:
    chosen = torch.distributions.Categorical(logits=out)
    return -chosen.log_prob(chosen.sample()).mean()


SHARDS = [dropped(by_deviation), dropped(contrastive), views, numpy_noise]
PIECES = [dropped(lambda o, y: F.cross_entropy(o, y)), masked, scaled, chosen_action]


@pytest.mark.parametrize("kind", [*SHARDS, *PIECES])
def test_losses_that_draw(
    kind: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    with caplog.at_level(logging.WARNING, "codedgrad"):
        coded = train(model, lambda x, y: kind(model(x), y))
    texts = [r.getMessage() for r in caplog.records]
    told = [t for t in texts if "helpers take whole shards" in t]
    helped = codedgrad.size() > 1
    assert ("help=shards" in coded.code.describe()) == (kind in SHARDS and helped)
    assert len(told) == (kind in SHARDS and helped)
    if told:
        assert ("by numpy or `random`" in told[0]) == (kind is numpy_noise)


# ---- batches that cannot be cut ----


class Graph:
    """A batch of a type that nobody knows."""

    def __init__(self, items: list[Any]) -> None:
        self.x = torch.stack([x for x, _ in items])
        self.y = torch.stack([y for _, y in items])


@pytest.mark.parametrize("summed", [False, True])
def test_batches_of_unknown_types(summed: bool) -> None:
    model, n = net(), codedgrad.size()
    reduction = "sum" if summed else "mean"

    def loss(graph: Graph) -> Tensor:
        return F.cross_entropy(model(graph.x), graph.y, reduction=reduction)

    dataset = torch.utils.data.TensorDataset(*data())
    sampler = codedgrad.ShardSampler(dataset, OWN * n, collate_fn=Graph)
    coded = train(model, loss, sampler=sampler, faults=slow())
    assert ("help=shards" in coded.code.describe()) == (summed and n > 1)


def test_a_low_rank_update_of_zeros(nobody_ends_the_job: Any) -> None:
    """Other values are others where a product with zeros hides them, too."""
    base = net().requires_grad_(False)
    model = nn.ModuleList([base, nn.Linear(5, 2, bias=False), nn.Linear(2, 3)])
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)

    def loss(x: Tensor, y: Tensor) -> Any:
        return right(model[0](x) + model[2](model[1](x)), y)

    with pytest.raises(ConfigError, match="with others"):
        train(model, loss, sampler=many(), **way("nobody helps"))
