"""Things that people do with an optimizer and a model, with the drop-in attached."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from parallel.training import everywhere
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import codedgrad
from codedgrad import codes
from codedgrad.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Callable


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def data(seed: int = 0) -> Tensor:
    """Eight samples of every worker, [workers, 8, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(codedgrad.size(), 8, 4, generator=generator)


def own(seed: int = 0) -> Tensor:
    return data(seed)[codedgrad.rank()]


def wrapped(of: nn.Module, **how: Any) -> torch.optim.Optimizer:
    return codedgrad.DistributedOptimizer(
        torch.optim.SGD(of.parameters(), lr=0.1, momentum=0.5),
        of.named_parameters(),
        **{"model": of, **how},
    )


def digest(model: nn.Module) -> str:
    return str([v.flatten().tolist() for v in model.state_dict().values()])


def same_everywhere(model: nn.Module) -> bool:
    return len(set(everywhere(digest(model)))) == 1


def plain_step(
    model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor]
) -> list[Any]:
    """Gradients of the mean loss of all workers, in one process."""
    for x in data():
        (loss(model, x) / codedgrad.size()).backward()
    return [p.grad for p in model.parameters()]


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


# ---- copies, files and what is left behind ----


def test_copies_of_the_model_are_not_exchanged() -> None:
    model = net()
    seen: list[str] = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append("user"))
    plain = pickle.dumps(net())
    optimizer = wrapped(model)
    handle.remove()  # the handle of a hook from before ours
    copies: list[Any] = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    file = io.BytesIO()
    torch.save(model, file)
    copies.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False))
    copies.append(torch.optim.swa_utils.AveragedModel(model).module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        copies.append(torch.jit.script(model))
    assert len(pickle.dumps(model)) < len(plain) + 100
    later = model.register_forward_pre_hook(lambda *_: seen.append("later"))
    for other in copies:
        out = other(own()).mean()
        if codedgrad.rank() == 0:  # others would wait in an exchange
            out.backward()
    assert not seen
    model(own())
    later.remove()
    model(own())
    assert seen == ["later"]
    torch.export.export(model.eval(), (own(),))
    detach(optimizer)


def test_an_optimizer_that_is_dropped_leaves_nothing_behind() -> None:
    model = net()
    optimizer = wrapped(model)
    with pytest.raises(codedgrad.ConfigError, match="distributed already"):
        codedgrad.optimizer._check_free(optimizer, [])
    free = codedgrad.optimizer._check_free
    other = torch.optim.SGD(model.parameters())
    with pytest.raises(codedgrad.ConfigError, match=r"'0.weight' is exchanged"):
        free(other, list(model.named_parameters()))
    gone = weakref.ref(codedgrad.optimizer._attached[optimizer])
    del optimizer
    gc.collect()
    assert gone() is None
    assert not any(
        p._post_accumulate_grad_hooks  # type: ignore[attr-defined]
        for p in model.parameters()
    )
    if codedgrad.rank() == 0:
        model(own()).mean().backward()
    free(other, list(model.named_parameters()))
    detach(wrapped(model))


def test_other_tools_of_torch() -> None:
    model = net()
    optimizer = wrapped(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(3):
        scaler.scale(model(own(step)).mean()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        assert same_everywhere(model)
    pickle.loads(pickle.dumps(optimizer))
    copy.deepcopy(optimizer)
    detach(optimizer)


# ---- checkpoints ----


def dropout_run(
    steps: range, saved: Any = None, *, early: bool = True
) -> tuple[str, Any]:
    model = nn.Sequential(net(), nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def load() -> None:
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(copy.deepcopy(saved[1]))

    if early:
        load()
    codedgrad.DistributedOptimizer(optimizer, model.named_parameters(), model=model)
    if not early:
        load()
    for step in steps:
        model(own(step)).pow(2).mean().backward()
        model(own(step)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    detach(optimizer)
    return digest(model), state


def test_a_resumed_run_ends_in_the_same_bits() -> None:
    whole, _ = dropout_run(range(6))
    _, saved = dropout_run(range(3))
    file = io.BytesIO()
    torch.save(saved, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert dropout_run(range(3, 6), saved)[0] == whole
    assert dropout_run(range(3, 6), saved, early=False)[0] == whole
    assert dropout_run(range(3, 6))[0] != whole
    model = nn.Sequential(net(), nn.Dropout(0.3))
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.load_state_dict(saved[1])
    model(own()).mean().backward()
    plain.step()


def test_a_broadcast_state_has_the_step() -> None:
    model = net()
    optimizer = wrapped(model)
    if codedgrad.rank() == 0:
        state = optimizer.state_dict()
        state["param_groups"][0]["codedgrad"] = {"steps": 7, "forwards": 1}
        optimizer.load_state_dict(state)
    codedgrad.broadcast_optimizer_state(optimizer)
    codedgrad.barrier()
    entry = optimizer.state_dict()["param_groups"][0]["codedgrad"]
    assert entry == {"steps": 7, "forwards": 1}
    assert "codedgrad" not in optimizer.param_groups[0]
    model(own()).mean().backward()
    detach(optimizer)


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
