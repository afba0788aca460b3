"""What passes may change, and what they may not: flags, other models, gradients.

Each test holds at any number of workers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_state import equal_everywhere
from torch import Tensor, nn

import codedgrad
from codedgrad import ConfigError
from codedgrad.job import runtime


@pytest.fixture
def nobody_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error comes on every worker by itself, so the job can go on with the next."""
    monkeypatch.setattr(runtime.Runtime, "fail", lambda *_: None)


def batch() -> int:
    """Samples of a step: two of each micro-batch."""
    return 8 * codedgrad.size()


# ---- other models, flags, gradients that do not travel ----


class Pair:
    """A model that is trained, and another one in its loss."""

    def __init__(self, other: nn.Module) -> None:
        torch.manual_seed(0)
        self.model, self.other = nn.Linear(4, 3), other
        generator = torch.Generator().manual_seed(1)
        self.data = (torch.randn(2 * batch(), 4, generator=generator),)

    def loss(self, x: Tensor) -> Tensor:
        return self.other(self.model(x)).pow(2).mean()

    def train(self, steps: int = 3, **options: Any) -> None:
        coded = codedgrad.CodedGradient(self.model, **options)
        sampler = codedgrad.ShardSampler(self.data, batch(), shuffle=False)
        try:
            while coded.step < steps:
                for shards in coded.steps(sampler):
                    coded.backward(self.loss, shards)
                    with torch.no_grad():
                        for p in (*self.model.parameters(), *self.other.parameters()):
                            if p.grad is not None:
                                p.sub_(p.grad, alpha=0.1)
                            p.grad = None
        finally:
            coded.close()


def frozen_module(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


CHANGING = [
    lambda: nn.BatchNorm1d(3, affine=False),
    lambda: nn.Sequential(frozen_module(nn.Linear(3, 3)), nn.BatchNorm1d(3).eval()),
    lambda: frozen_module(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))),
    lambda: frozen_module(nn.utils.spectral_norm(nn.Linear(3, 3))),
    lambda: nn.Linear(3, 3),
    lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
]


@pytest.mark.parametrize("kind", range(len(CHANGING)))
def test_another_models_state_is_refused_or_travels(
    kind: int, nobody_ends_the_job: Any
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"also=\["):
        Pair(CHANGING[kind]()).train()
    torch.manual_seed(0)
    pair = Pair(CHANGING[kind]())
    before = {n: t.clone() for n, t in pair.other.state_dict().items()}
    pair.train(also=[pair.other])
    assert equal_everywhere(pair.model)
    assert equal_everywhere(pair.other)
    if any("running_mean" in n for n in before):
        after = pair.other.state_dict()
        assert any(not torch.equal(before[n], after[n]) for n in before)


def test_a_constant_other_model_is_nobodys_business() -> None:
    for other in (nn.Tanh(), frozen_module(nn.Linear(3, 3)).eval()):
        pair = Pair(other)
        pair.train()
        assert equal_everywhere(pair.model)


def test_gradients_of_also_are_those_of_one_module() -> None:
    torch.manual_seed(0)
    pair = Pair(nn.Linear(3, 2))
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    whole[0].load_state_dict(pair.model.state_dict())
    whole[1].load_state_dict(pair.other.state_dict())
    x = pair.data[0]
    for i in (0, batch(), 0, batch()):
        whole.zero_grad()
        whole(x[i : i + batch()]).pow(2).mean().backward()
        with torch.no_grad():
            for p in whole.parameters():
                p.sub_(p.grad, alpha=0.1)
    pair.train(steps=4, also=[pair.other])
    ours = [*pair.model.parameters(), *pair.other.parameters()]
    for p, want in zip(ours, whole.parameters(), strict=True):
        torch.testing.assert_close(p, want)


def test_flags_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))

    def loss(x: Tensor) -> Tensor:
        value = model(x).pow(2).mean()
        model.eval()
        model[0].requires_grad_(False)
        return value

    with codedgrad.CodedGradient(model) as coded:
        sampler = codedgrad.ShardSampler((torch.randn(6 * batch(), 4),), batch())
        for shards in coded.steps(sampler):  # with hooks that are attached anew
            coded.backward(loss, shards)
            assert all(m.training for m in model.modules())
            assert all(p.requires_grad for p in model.parameters())


def test_a_loss_weight_of_its_own_is_refused(nobody_ends_the_job: Any) -> None:
    for weight in (nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)):
        model = nn.Linear(4, 2)
        coded = codedgrad.CodedGradient(model)
        steps = coded.steps(
            codedgrad.ShardSampler((torch.randn(2 * batch(), 4),), batch())
        )

        def train(coded: Any = coded, steps: Any = steps, w: Any = weight) -> None:
            for shards in steps:  # a tensor is refused when it comes again
                coded.backward(lambda x: (coded.model(x) * w).mean(), shards)

        with pytest.raises(ConfigError, match=r"shape \(1,\)"):
            train()
        coded.close()


def test_an_input_may_have_a_gradient() -> None:
    """A gradient penalty asks for the gradient of its input."""
    model = nn.Linear(4, 1)

    def loss(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        out = model(x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + g.pow(2).mean()

    with codedgrad.CodedGradient(model) as coded:
        for shards in coded.steps(
            codedgrad.ShardSampler((torch.randn(4 * batch(), 4),), batch())
        ):
            coded.backward(loss, shards)
            model.zero_grad()


def test_an_optimizer_refuses_gradients_of_its_own() -> None:
    model, other = nn.Linear(4, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with codedgrad.CodedGradient(model) as coded:
        for shards in coded.steps(
            codedgrad.ShardSampler((torch.randn(2 * batch(), 4),), batch())
        ):
            coded.backward(lambda x: model(x).mean(), shards)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        other(torch.ones(1, 1)).sum().backward()
        with pytest.raises(ConfigError, match="not exchanged"):
            optimizer.step()
    optimizer.step()


# ---- the life of a CodedGradient ----


def test_twice_on_one_model(nobody_ends_the_job: Any) -> None:
    model = nn.Linear(4, 1)
    hooks = len(model._forward_pre_hooks)
    with codedgrad.CodedGradient(model):
        with pytest.raises(ConfigError, match=r"close\(\)"):
            codedgrad.CodedGradient(model)
        assert len(model._forward_pre_hooks) == hooks + 1
    assert len(model._forward_pre_hooks) == hooks
    dropped = codedgrad.CodedGradient(model)
    exchange = dropped._exchange
    del dropped
    assert len(model._forward_pre_hooks) == hooks
    exchange.close()
    codedgrad.CodedGradient(model).close()


def test_lazy_modules(nobody_ends_the_job: Any) -> None:
    with pytest.raises(ConfigError, match="not initialised yet"):
        codedgrad.CodedGradient(nn.Sequential(nn.Linear(4, 2), nn.LazyLinear(3)))


def test_a_constant_buffer_costs_nothing_in_a_row() -> None:
    model = nn.Linear(4, 1)
    model.register_buffer("mask", torch.ones(8_000_000).double())
    with codedgrad.CodedGradient(model) as coded:
        assert coded._payload.layout.dtype == torch.float32
        assert coded._payload.layout.count < 1000


def test_a_late_first_change_still_travels() -> None:
    """The fourth step is compared by versions alone."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)
            self.register_buffer("centre", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            if coded.step == 3:
                self.centre = self.centre + h.detach().mean(0)
            return h

    torch.manual_seed(0)
    model = Late()
    with codedgrad.CodedGradient(model) as coded:
        data = (torch.randn(8 * batch(), 4),)
        sampler = codedgrad.ShardSampler(data, batch(), shuffle=False)
        for shards in coded.steps(sampler):
            coded.backward(lambda x: model(x).pow(2).mean(), shards)
            model.zero_grad()
    want = model.linear(data[0][3 * batch() : 4 * batch()]).mean(0)
    torch.testing.assert_close(model.centre, want)
    assert equal_everywhere(model)
