"""Forwards that are left out: their outputs, their gradients, and who sees them."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.step.needless import NeedlessForwards


class Exchanging:
    """Exchanges as the test says."""

    def __init__(self) -> None:
        self.decoded = False
        self.left_out = 0

    def needless(self) -> bool:
        return self.decoded

    def skipped(self) -> None:
        self.left_out += 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        self.calls += 1
        return {"out": scale * self.linear(x), "which": x.argmax(1)}


@pytest.fixture
def job() -> tuple[Model, Exchanging, NeedlessForwards]:
    model, exchanging = Model(), Exchanging()
    return model, exchanging, NeedlessForwards(model, model.parameters(), exchanging)


def test_outputs_have_the_right_shape_and_one_zero_gradient(job: Any) -> None:
    model, exchanging, needless = job
    first = model(torch.randn(5, 3), scale=2.0)
    exchanging.decoded = True
    needless.look()
    for size in (5, 4, 1):  # the last batch of an epoch is smaller
        got = model(torch.randn(size, 3), scale=2.0)
        assert got["out"].shape == (size, 2)
        assert torch.equal(got["out"], first["out"][:1].expand(size, -1))
        assert torch.equal(got["which"], first["which"][:1].expand(size))
    assert (model.calls, exchanging.left_out) == (1, 3)
    got["out"].mul_(2.0).pow(2).sum().backward()
    assert model.linear.weight.grad is None
    assert torch.equal(model.linear.bias.grad, torch.zeros(2))
    exchanging.decoded = False
    model(torch.randn(5, 3))
    assert model.calls == 2
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(torch.randn(5, 3), scale=3.0),
        lambda m: m(
            torch.randn(5, 3).half().float()[:, :3].double().float(), scale=0.5
        ),
        lambda m: m.eval()(torch.randn(5, 3)),
        lambda m: torch.no_grad()(m)(torch.randn(5, 3)),
    ],
)
def test_what_is_not_like_the_last_forward_is_computed(job: Any, call: Any) -> None:
    model, exchanging, needless = job
    model(torch.randn(5, 3))
    exchanging.decoded = True
    needless.look()
    call(model)
    assert (model.calls, exchanging.left_out) == (2, 0)


def test_what_is_repeated_is_a_copy_and_made_once(job: Any) -> None:
    """Whoever changes an output in place does not change what comes later."""
    model, exchanging, needless = job
    first = model(torch.randn(5, 3))
    kept, sample = needless._seen, first["out"][:1].detach().clone()
    with torch.no_grad():
        first["out"].zero_()
    model(torch.randn(5, 3))
    assert needless._seen is kept
    exchanging.decoded = True
    needless.look()
    for _ in range(2):
        got = model(torch.randn(5, 3))["out"]
        assert torch.equal(got, sample.expand(5, -1))
        got.mul_(2.0)


def test_a_gradient_that_is_needed_is_refused(job: Any) -> None:
    model, exchanging, needless = job
    model(torch.randn(5, 3))
    exchanging.decoded = True
    needless.look()
    out = model(torch.randn(5, 3))["out"]
    exchanging.decoded = False  # the backward comes an exchange later
    with pytest.raises(ConfigError, match="catch_up=False"):
        out.sum().backward()


def test_copies_and_onlookers_see_the_class_own_forward(job: Any) -> None:
    model, exchanging, needless = job
    x = torch.randn(5, 3)
    model(x)
    exchanging.decoded = True
    needless.look()
    assert "forward" in vars(model)
    assert "scale" in inspect.signature(model.forward).parameters
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(other.linear.weight)
        nn.init.ones_(other.linear.bias)
        assert torch.equal(other(x)["out"], torch.ones(5, 2))
    needless.remove()
    assert "forward" not in vars(model)
    model(x)
    assert model.calls == 2


def test_a_model_whose_samples_cannot_be_told_is_always_computed() -> None:
    model, exchanging = nn.LSTM(3, 2), Exchanging()
    needless = NeedlessForwards(model, model.parameters(), exchanging)
    for _ in range(2):
        model(torch.randn(4, 5, 3))  # its state is of another size
        exchanging.decoded = True
        needless.look()
    assert exchanging.left_out == 0
