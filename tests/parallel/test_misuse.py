"""What a script may do beside the steps, in both faces: right, or refused by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from parallel.training import everywhere
from test_watch import nobody_ends_the_job as nobody_ends_the_job
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import codedgrad
from codedgrad import ConfigError
from codedgrad.hvd.optimizer import detach


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def data() -> Tensor:
    n = codedgrad.size()
    return torch.randn(8 * n, 4, generator=torch.Generator().manual_seed(1))


def own() -> Tensor:
    return data()[8 * codedgrad.rank() :][:8]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def step(coded: Any, loss: Any) -> None:
    sampler = codedgrad.ShardSampler((data(),), len(data()))
    for shards in coded.steps(sampler):
        coded.backward(loss, shards)


def test_a_closed_one_says_so(nobody_ends_the_job: Any) -> None:
    model = net()
    coded = codedgrad.CodedGradient(model)
    step(coded, lambda x: model(x).mean())
    coded.close()
    coded.close()
    with pytest.raises(ConfigError, match="the CodedGradient of the Linear is closed"):
        step(coded, lambda x: model(x).mean())


def test_one_model_in_both_faces_is_refused(nobody_ends_the_job: Any) -> None:
    model = net()
    optimizer = sgd(model)
    with codedgrad.CodedGradient(model), pytest.raises(ConfigError, match="exchanged"):
        codedgrad.DistributedOptimizer(optimizer, model=model)
    codedgrad.DistributedOptimizer(optimizer, model=model)
    with pytest.raises(ConfigError, match=r"is exchanged already, by a Distributed"):
        codedgrad.CodedGradient(model)
    detach(optimizer)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda c: next(c.steps(DataLoader(TensorDataset(data()), 8))),
            r"got a DataLoader; give the DataLoader's dataset to codedgrad\.ShardSamp",
        ),
        (lambda c: next(c.steps(data())), r"got a Tensor; give it to codedgrad\.Shard"),
        (lambda c: step(c, c.model(own()).mean()), "takes a function, got a Tensor"),
        (lambda c: c.backward(lambda x: c.model(x).mean(), own()), "got a Tensor$"),
    ],
)
def test_first_mistakes_have_remedies(
    act: Any, message: str, nobody_ends_the_job: Any
) -> None:
    with (
        codedgrad.CodedGradient(net()) as coded,
        pytest.raises(ConfigError, match=message),
    ):
        act(coded)


def test_a_wrong_start_has_remedies(nobody_ends_the_job: Any) -> None:
    model: Any = net()
    optimizer: Any = sgd(model)
    with pytest.raises(ConfigError, match="got a SGD; leave the optimizer out"):
        codedgrad.CodedGradient(model, optimizer)
    with pytest.raises(ConfigError, match="Module, got a SGD"):
        codedgrad.CodedGradient(optimizer)
    wrong: Any = {"patiance": 0.2}
    with pytest.raises(
        TypeError, match=r"Gradient\(\) .*mean patience\?.* code, .*pol"
    ):
        codedgrad.CodedGradient(model, **wrong)
    with pytest.raises(TypeError, match=r"Optimizer\(\) .*mean compression.* windo"):
        codedgrad.DistributedOptimizer(optimizer, compresion=None)


def test_a_function_that_draws_by_itself_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, own_numbers = net(), torch.Generator()

    def rollouts(draw: Any, _: Any) -> Tensor:
        return torch.randn(draw.count, 4, generator=own_numbers)

    sampler = codedgrad.batches(rollouts, 2, 8 * codedgrad.size(), chunk=2)
    with (
        caplog.at_level(logging.WARNING, "codedgrad"),
        codedgrad.CodedGradient(model) as coded,
    ):
        for shards in coded.steps(sampler):
            coded.backward(lambda x: model(x).mean(), shards)
    told = [r.getMessage() for r in caplog.records if "every reading" in r.getMessage()]
    assert told
    assert "rollouts of batches() returns another sample" in told[0]


class OfHorovod(torch.optim.SGD):
    """What Horovod makes of an optimizer: a subclass that says where it is from."""

    __module__ = "horovod.torch.optimizer"


def test_two_exchanges_of_one_gradient_are_refused(nobody_ends_the_job: Any) -> None:
    model, other = net(), net()
    theirs = OfHorovod(model.parameters(), lr=0.1)
    of_another = OfHorovod(other.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"DistributedOptimizer of horovod\.torch"):
        codedgrad.DistributedOptimizer(theirs)
    with codedgrad.CodedGradient(model) as coded:
        step(coded, lambda x: model(x).mean())
        with pytest.raises(ConfigError, match="leave that one out, or codedgrad"):
            theirs.step()
        of_another.step()
    theirs.step()


def test_a_collective_in_the_loss_function_is_refused(nobody_ends_the_job: Any) -> None:
    model = net()
    coded = codedgrad.CodedGradient(model, codedgrad.codes.uncoded(codedgrad.size()))

    def loss(x: Tensor) -> Tensor:
        codedgrad.allreduce(1.0)
        return model(x).mean()

    with pytest.raises(ConfigError, match=r"wants to wait for all .* an allreduce"):
        step(coded, loss)
    assert codedgrad.allreduce(1.0) == 1.0  # between the steps it is fine
    coded.close()


@pytest.mark.parametrize("face", ["coded", "drop-in"])
def test_numbers_drawn_between_the_steps_are_the_users(face: str) -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5))
    optimizer = sgd(model)
    coded = codedgrad.CodedGradient(model) if face == "coded" else None
    if coded is None:
        codedgrad.DistributedOptimizer(optimizer, model=model)
    torch.manual_seed(7)
    drawn = []
    for _ in range(3):
        if coded is not None:
            step(coded, lambda x: model(x).mean())
        else:
            model(own()).mean().backward()
        optimizer.step()
        drawn.append(float(torch.rand(())))
    torch.manual_seed(7)
    assert drawn == [float(torch.rand(())) for _ in range(3)]
    coded.close() if coded is not None else detach(optimizer)


class Centred(nn.Module):
    """Assigns its buffer anew in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.out = net()
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return self.out(x - self.centre)


def test_the_drop_in_finds_a_buffer_that_is_assigned_anew() -> None:
    model = Centred()
    optimizer = sgd(model)
    codedgrad.DistributedOptimizer(optimizer, model=model)
    want = torch.zeros(4)
    for _ in range(6):
        model(own()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        want = 0.9 * want + 0.1 * data().mean(0)
    torch.testing.assert_close(model.centre, want)
    assert len(set(everywhere(str(model.centre.tolist())))) == 1
    detach(optimizer)


def test_gradients_that_are_written_in_place_are_exchanged() -> None:
    model, plain = net(), net()
    optimizer, reference = sgd(model), sgd(plain)
    codedgrad.DistributedOptimizer(optimizer, model=model)
    for number in range(4):
        for m, o, x in ((model, optimizer, own()), (plain, reference, data())):
            if number == 0:
                m(x).pow(2).mean().backward()
            else:
                found = torch.autograd.grad(m(x).pow(2).mean(), list(m.parameters()))
                for p, g in zip(m.parameters(), found, strict=True):
                    assert p.grad is not None
                    p.grad.copy_(g)
            o.step()
        for p, want in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, want)
    detach(optimizer)


@pytest.mark.parametrize("kind", ["retained", "again", "detached"])
def test_backward_inside_the_loss_function_is_refused(
    kind: str, nobody_ends_the_job: Any
) -> None:
    model = net()

    def loss(x: Tensor) -> Tensor:
        found = model(x).mean()
        found.backward(retain_graph=kind == "retained")
        if kind == "again":
            found = model(x).mean()
        return found.detach() if kind == "detached" else found

    with (
        codedgrad.CodedGradient(model) as coded,
        pytest.raises(ConfigError, match=r"p\.grad of 'weight' in step 0.*backward\("),
    ):
        step(coded, loss)


def test_a_penalty_with_a_backward_of_its_own_counts_once() -> None:
    """In the first step, too, in which the loss function is called on trial."""
    model, plain, x = net(), net(), data()
    (0.5 * plain(x).mean() + plain(x).mean()).backward()

    def loss(x: Tensor) -> Tensor:
        (0.5 * model(x).mean()).backward()
        return model(x).mean()

    with codedgrad.CodedGradient(model) as coded:
        for _ in range(2):
            model.zero_grad()
            step(coded, loss)
            for p, want in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p.grad, want.grad)


def test_zeroing_gradients_inside_the_loss_function_changes_nothing() -> None:
    model, x = net(), data()
    model(x).mean().backward()
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    def loss(x: Tensor) -> Tensor:
        model(x).mean().backward()
        model.zero_grad(set_to_none=codedgrad.rank() == 0)
        return model(x).mean()

    with codedgrad.CodedGradient(model) as coded:
        step(coded, loss)
    for p, w in zip(model.parameters(), want, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, w)
