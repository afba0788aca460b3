"""What people do in a step, with the drop-in attached, equals plain torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parallel.dropin import data, net, own, plain_step, same_everywhere, wrapped
from parallel.training import everywhere
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import codedgrad
from codedgrad import codes
from codedgrad.hvd.optimizer import detach

# ---- several forwards and backwards in a step ----


def test_two_forwards_have_two_masks_and_the_same_statistics() -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5))
    optimizer = wrapped(model)
    for step in range(3):
        a, b = model(own(step)), model(own(step + 1))
        assert not torch.equal(a == 0, b == 0)
        model(own(step))  # without a backward: what it changes travels as well
        with torch.no_grad():
            model(own(step))
        (a - b).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert same_everywhere(model)
    detach(optimizer)


def test_a_part_of_the_model_that_is_called_first_travels_too() -> None:
    model = net()
    optimizer = wrapped(model)
    for step in range(3):
        model[:2](own(step))
        model(own(step)).mean().backward()
        optimizer.step()
        assert same_everywhere(model)
    detach(optimizer)


def test_what_the_user_loads_between_two_steps_keeps_its_bits() -> None:
    model = net()
    optimizer = wrapped(model)
    model(own()).mean().backward()
    state = {k: v + 0.1 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()(own()).mean().backward()
    want = state["1.running_mean"]
    assert torch.equal(model[1].running_mean, want)
    detach(optimizer)


def test_two_losses_of_one_forward() -> None:
    def losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        out = model(x)
        return out.pow(2).mean(), out.abs().mean()

    model, truth = net(), net()
    optimizer = wrapped(model)
    first, second = losses(model, own())
    first.backward(retain_graph=True)
    before = model[1].running_mean.clone()
    second.backward()
    assert torch.equal(model[1].running_mean, before)
    want = plain_step(truth, lambda m, x: sum(losses(m, x), torch.zeros(())))
    torch.testing.assert_close([p.grad for p in model.parameters()], want)
    assert same_everywhere(model)
    detach(optimizer)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_calls_its_closure_equally_often_everywhere(search: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    truth = copy.deepcopy(model)

    def lbfgs(of: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(of.parameters(), max_iter=6, line_search_fn=search)

    def train(of: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (of(x) - x.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)

    optimizer = codedgrad.DistributedOptimizer(
        lbfgs(model), model.named_parameters(), model=model
    )
    train(model, optimizer, own())
    train(truth, lbfgs(truth), data().flatten(0, 1))
    torch.testing.assert_close(
        list(model.parameters()), list(truth.parameters()), rtol=2e-2, atol=2e-3
    )
    assert same_everywhere(model)
    detach(optimizer)


def test_a_gradient_in_memory_that_decoded_ones_have_left_is_exchanged() -> None:
    """After zero_grad() the allocator may give their memory to one of the user's."""
    model = nn.Linear(1000, 1000, bias=False).bfloat16()
    codedgrad.broadcast_parameters(model.state_dict())
    optimizer = wrapped(model)
    for step in range(4):
        x = torch.full((8, 1000), 1.0 + codedgrad.rank() + step).bfloat16()
        optimizer.zero_grad()
        (g,) = torch.autograd.grad(model(x).square().mean(), [model.weight])
        model.weight.grad = g
        del g
        optimizer.step()
        made: Any = optimizer
        assert made.report.step == step
    assert len(set(everywhere(str(model.weight.detach().double().sum())))) == 1
    detach(optimizer)


def test_gradients_from_autograd_grad_are_exchanged_in_the_step() -> None:
    model, truth = net(), net()
    optimizer = wrapped(model, model=None)
    model.eval()
    truth.eval()
    gradients = torch.autograd.grad(model(own()).pow(2).mean(), model.parameters())
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g
    optimizer.step()
    want = plain_step(truth, lambda m, x: m(x).pow(2).mean())
    torch.testing.assert_close([p.grad for p in model.parameters()], want)
    optimizer.step()  # the same gradients again: nothing is exchanged
    assert same_everywhere(model)
    detach(optimizer)


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_of_16_bits_that_the_user_made_are_exchanged(mixed: bool) -> None:
    """They are of another type than the row in which they travel."""
    model = net().bfloat16()
    if mixed:  # its first layer gets no gradient
        model[0].float()
    optimizer = wrapped(model, model=None)
    model.eval()
    for step in range(2):
        x = own(step).bfloat16()
        out = model[3](x.repeat(1, 2)) if mixed else model(x)
        some = model[3] if mixed else model
        gradients = torch.autograd.grad(out.pow(2).mean(), some.parameters())
        for p, g in zip(some.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()
        assert same_everywhere(model)
    optimizer.step()  # the same gradients again: nothing is exchanged
    assert same_everywhere(model)
    detach(optimizer)


def test_a_gan_of_two_optimizers() -> None:
    torch.manual_seed(0)
    maker, critic = nn.Linear(4, 4), net()
    makes, judges = wrapped(maker), wrapped(critic)
    for step in range(3):
        for _ in range(2):
            judges.zero_grad()
            critic(own(step)).mean().backward()
            (-critic(maker(own(step)).detach())).mean().backward()
            judges.step()
        makes.zero_grad()
        (-critic(maker(own(step)))).mean().backward()
        makes.step()
        assert same_everywhere(nn.ModuleList([maker, critic]))
    detach(makes)
    detach(judges)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_the_same_again(reentrant: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5))
            self.head = nn.Linear(8, 1)
            self.masks: list[Tensor] = []
            self.body[2].register_forward_hook(self.note)

        def note(self, _module: Any, _inputs: Any, out: Tensor) -> None:
            self.masks.append(out.detach() == 0)

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant))

    model = Model()
    optimizer = wrapped(model, bucket_mb=1e-4)
    for step in range(3):
        out = checkpoint(model, own(step), use_reentrant=False)
        out.mean().backward()
        assert all(torch.equal(model.masks[0], m) for m in model.masks)
        model.masks = []
        optimizer.step()
        optimizer.zero_grad()
        assert same_everywhere(model)
    detach(optimizer)


@pytest.mark.parametrize("bucket_mb", [None, 1e-4])
def test_a_backward_inside_of_a_backward_is_no_pass(bucket_mb: float | None) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        inner = checkpoint(model[2:], model[:2](x), use_reentrant=True)
        outer = checkpoint(lambda y: checkpoint(model, y, use_reentrant=True), x,
                           use_reentrant=True)  # fmt: skip
        return inner.pow(2).mean() + outer.mean() / 2

    def layers() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    model, truth = layers(), layers()
    optimizer = wrapped(model, bucket_mb=bucket_mb)
    want = plain_step(truth, loss)
    for _ in range(3):
        loss(model, own()).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], want)
        model.zero_grad()
    for x in (own(), own().requires_grad_()):
        checkpoint(model, x.requires_grad_(), use_reentrant=True).mean().backward()
        optimizer.step()
        assert same_everywhere(model)
    detach(optimizer)


def test_torch_compile() -> None:
    def trained(compiled: bool) -> str:
        model = nn.Sequential(net(), nn.Dropout(0.5))
        optimizer = wrapped(model)
        use = torch.compile(model, backend="aot_eager") if compiled else model
        masks = []
        for step in range(3):
            out = use(own(step))
            masks.append(str((out == 0).flatten().tolist()))
            out.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert same_everywhere(model)
        detach(optimizer)
        torch._dynamo.reset()
        return str(masks)

    assert trained(True) == trained(False)


# ---- batches that are not needed ----


def test_a_small_batch_of_an_exchange_that_is_not_decoded_is_not_sent() -> None:
    """The sampler foresaw it wrongly; the row of another worker is taken."""
    n = codedgrad.size()
    copies = next((d for d in range(2, n + 1) if n % d == 0), 1)
    code = codes.fractional(n, copies=copies)
    model, truth = nn.Linear(4, 1), nn.Linear(4, 1)
    truth.load_state_dict(model.state_dict())
    codedgrad.broadcast_parameters(model.state_dict())
    truth.load_state_dict(model.state_dict())
    samples = torch.utils.data.TensorDataset(data().flatten(0, 1))
    sampler = codedgrad.ShardBatchSampler(samples, 8 * n, code, codedgrad.rank())
    optimizer = wrapped(model, code=code, sampler=sampler)
    ahead: Any = sampler.skip
    ahead._skipped = True
    group_has_another = copies > 1 and codedgrad.rank() == 0
    for (indices,) in ([next(iter(sampler))],):
        x = samples.tensors[0][indices]
        model(x[:2] if group_has_another else x).mean().backward()
    for x in samples.tensors[0].chunk(n):
        (truth(x).mean() / n).backward()
    torch.testing.assert_close(model.weight.grad, truth.weight.grad)
    detach(optimizer)
    assert sampler.skip is None
