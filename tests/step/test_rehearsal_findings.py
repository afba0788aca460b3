"""What a rehearsal finds out of loss functions that are hard to try."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codedgrad.data.seeding import own_rng
from codedgrad.errors import ConfigError
from codedgrad.row.payload import Payload
from codedgrad.step import otherwise
from codedgrad.step.held import _is_a_time, _values_of
from codedgrad.step.reach import Reached
from codedgrad.step.rehearsal import Asked, Rehearsal
from codedgrad.step.subject import Subject


def rehearsed(
    model: nn.Module, loss: Any, batch: tuple[Any, ...], outer: Any = None
) -> Rehearsal:
    """Return a rehearsal of a loss function, with a shard of four pieces."""
    subject = Subject(model)
    payload = Payload(subject.trainable(), [])
    payload.buffers.look_up_in([])
    payload.buffers.remember()
    rehearsal = Rehearsal(subject, payload, Asked(True, True, 0))
    sampler = SimpleNamespace(helpable=True)
    sizes = (len(batch[0]) // 4,) * 4
    shards = SimpleNamespace(sizes=sizes, sampler=sampler, fetch=None)
    context: Any = SimpleNamespace(loss_fn=loss, shards=shards)
    with own_rng(), outer or contextlib.nullcontext():
        rehearsal.look(context, (0, 4), batch, "step 0")
    return rehearsal


class Locked:
    """Something that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_a_batch_that_cannot_be_copied(caplog: pytest.LogCaptureFixture) -> None:
    net, x = nn.Linear(3, 1), torch.randn(8, 3)

    def loss(x: Tensor, _: Any = None) -> Tensor:
        return net(x).square().sum()

    whole = x.clone().requires_grad_() * 2  # no leaf
    for batch in ((x, Locked()), (whole,)):
        caplog.clear()
        assert rehearsed(net, loss, batch).found
        assert "the batch cannot be copied, " in caplog.text

    def fails(x: Tensor) -> Tensor:
        raise ValueError("of the loss function")

    assert not rehearsed(net, fails, (x,)).found


@pytest.mark.parametrize("order", [torch.randperm, lambda n: torch.rand(n).argsort()])
def test_random_partners_in_the_batch(order: Any) -> None:
    net, x = nn.Linear(3, 1), torch.randn(8, 3)

    def loss(x: Tensor) -> Tensor:
        y = net(x)
        return (y - 2 * y[order(len(y))]).square().mean()

    assert rehearsed(net, loss, (x,)).found

    def mean(x: Tensor) -> Tensor:
        return net(x[order(len(x))]).square().mean()

    assert not rehearsed(net, mean, (x,)).found


class Peak(nn.Module):
    """Divides by the largest value of its life, which is private."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 16)
        self._peak = 0.0
        with torch.no_grad():
            self.linear.weight.mul_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        self._peak = max(self._peak, float(y.detach().abs().max()))
        return y / self._peak


def test_private_attributes_are_put_back() -> None:
    model, x = Peak(), torch.randn(8, 64)
    rehearsed(model, lambda x: (model(x).square().mean(), float(len(x))), (x,))
    assert model._peak == 0.0


class Lazy(nn.LazyLinear):
    """A module of the user's that makes its parameters later."""


class Recurrent(nn.LSTM):
    """A module of the user's whose private attributes hold its parameters."""


def test_private_attributes_of_torch_are_left_alone() -> None:
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    recurrent, lazy = Recurrent(2, 2), Lazy(2)
    lazy(torch.ones(1, 2))
    model = nn.Sequential(nn.Linear(2, 2), recurrent, lazy, parametrized)
    found = Reached(lambda: None, model.modules(), keep=True, private=True).plain()
    assert [name for name, _ in found if name.startswith("'_")] == []


class Answers(nn.Linear):
    """A classifier that lists its parameters in a place of its own."""

    def __init__(self) -> None:
        super().__init__(16, 4)
        self._all = list(self.parameters())


@pytest.mark.parametrize("way", ["plain", "autocast", "listed"])
def test_right_answers_are_no_weight(way: str) -> None:
    """Also where a cache, or the model, shows the true parameters in another place."""
    torch.manual_seed(1)
    model = Answers() if way == "listed" else nn.Linear(16, 4)
    batch = torch.randn(32, 16), torch.randint(0, 4, (32,))
    cast = torch.autocast("cpu", torch.bfloat16) if way == "autocast" else None

    def loss(x: Tensor, y: Tensor) -> Any:
        z = model(x).float()
        return nn.functional.cross_entropy(z, y), (z.argmax(1) == y).sum()

    with pytest.raises(ConfigError, match="weight"):
        rehearsed(model, loss, batch, cast)


def test_a_weight_is_believed_where_memory_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, filled = nn.Linear(3, 1), torch.randn(8, 3), []
    before = [p.detach().clone() for p in model.parameters()]
    fill = otherwise._fill

    def boom(values: Tensor) -> None:
        filled.append(values)
        fill(values)
        if len(filled) % 2 == 0:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(otherwise, "_fill", boom)
    rehearsed(model, lambda x: (model(x).square().mean(), float(len(x))), (x,))
    assert filled
    for p, values in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, values)


def test_large_tensors_are_filled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otherwise, "_AT_ONCE", 64)
    for made in (torch.full((3, 500), 2.0), torch.full((500, 3), 2.0).T):
        with otherwise.other_values([made]) as changed:
            assert changed
            assert 1.8 < made.square().mean().sqrt() < 2.2
            assert len(made.unique()) > 1000
        assert (made == 2.0).all()


def test_a_generator_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """Its numbers are replaced like others of torch, and are the same in every pass."""
    net, x = nn.Linear(3, 1), torch.randn(8, 3)
    own, host = torch.Generator().manual_seed(3), np.random.default_rng(3)

    def mean(x: Tensor) -> Tensor:
        return net(x * (torch.rand(x.shape, generator=own) > 0.2)).square().mean()

    before = own.get_state()
    assert not rehearsed(net, mean, (x,)).found
    assert torch.equal(own.get_state(), before)

    def total(x: Tensor) -> Tensor:
        return mean(x) * len(x)

    assert rehearsed(net, total, (x,)).found
    assert "draws random numbers" not in caplog.text

    def by_numpy(x: Tensor) -> Tensor:
        return net(x * torch.from_numpy(host.random(x.shape)).float()).square().mean()

    assert rehearsed(net, by_numpy, (x,)).found
    assert "draws random numbers" in caplog.text


class Criterion:
    """Something that is called, with a number of many digits."""

    def __init__(self, alpha: float) -> None:
        self.alpha, self.last = alpha, alpha

    def __call__(self, x: Any) -> Any:
        self.last = x * self.alpha
        return self.last


class Watcher:
    """Something that measures."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def test_the_values_that_are_compared() -> None:
    def values(a: float, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
        criterion, watcher = Criterion(a), Watcher(seconds)
        array, number, many = np.full(3, a), np.float32(a), [round(a, 2)] * 40
        whole, log = np.array([int(seconds * 1e9)]), [seconds] * 40

        def loss(x: Any) -> Any:
            known = array, number, many, whole, log
            return criterion(x), watcher.seconds, known

        return _values_of(loss, [], set(), full=True)

    strict, own = values(-0.1234567891, 0.3232323232)
    assert strict.keys() == {"array", "number"}
    assert own.keys() == {"criterion.alpha", "many", "whole"}
    other = values(-0.9876543219, 0.3232323232)
    assert not strict.items() & other[0].items()
    assert [k for k in own if own[k] != other[1][k]] == ["criterion.alpha", "many"]
    json.dumps([strict, own])


def test_what_looks_like_a_reading_of_a_clock() -> None:
    assert all(map(_is_a_time, (time.time(), time.monotonic(), time.perf_counter())))
    assert not _is_a_time(-0.1234567891)
    if time.monotonic() > 1000.0:  # else the machine has just been started
        assert not _is_a_time(0.1234567891)
