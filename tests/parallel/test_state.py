"""Every tensor of a model, changed in every way a user can, at any number of workers.

The truth is plain torch in one process on the whole batch: where the change is right,
parameters and buffers agree with it to rounding, and between workers to the bit. Where
it cannot be right there is a ConfigError that names the tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import codedgrad
from codedgrad import ConfigError
from codedgrad.job import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = 5
CHANGED_IN = 2  # the first step that is changed, between the steps


class Net(nn.Module):
    """One tensor of each kind; all of them take part in the output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Linear(4, 3).double()
        self.last = nn.Linear(3, 1).double()
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.frozen = nn.Parameter(torch.ones(3).double(), requires_grad=False)
        self.register_buffer("floats", torch.ones(3).double())
        self.register_buffer("counts", torch.ones(3, dtype=torch.int64))
        self.register_buffer("small", torch.ones(3, dtype=torch.uint8))
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))
        self.register_buffer("phases", torch.ones(3, dtype=torch.complex128))
        self.register_buffer("wide", torch.ones(1).double().expand(3))
        self.inside: Callable[[Net], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.inside is not None:
            self.inside(self)
        h = self.first(x) * self.frozen * self.floats * self.wide * self.counts
        h = h * self.small * self.flags * self.phases.real.clone()
        return self.last(h.tanh())


TENSORS = {
    "first.weight": "trainable",
    "frozen": "frozen",
    "floats": "buffer",
    "counts": "buffer",
    "small": "buffer",
    "flags": "buffer",
    "phases": "buffer",
    "wide": "buffer",
}


def holder(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return net.get_submodule(path), key


def another(t: Tensor) -> Tensor:
    """Another value, the same whatever the data."""
    t = t.detach().clone()
    if t.dtype == torch.bool:
        return torch.zeros_like(t)
    return t + 1 if not t.is_floating_point() and not t.is_complex() else 0.75 * t


def in_place(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    t = getattr(module, key)
    with torch.no_grad():
        t.copy_(another(t))


def by_data(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    t = getattr(module, key)
    t.data.copy_(another(t))


def data_assigned(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    t = getattr(module, key)
    t.data = another(t)


def reassigned(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    t = getattr(module, key)
    value = another(t)
    if isinstance(t, nn.Parameter):
        value = nn.Parameter(value, requires_grad=t.requires_grad)
    setattr(module, key, value)


def assigned_by_load(net: nn.Module, name: str) -> None:
    state = {n: t.clone() for n, t in net.state_dict().items()}
    state[name] = another(state[name])
    net.load_state_dict(state, assign=True)


def unfrozen(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    getattr(module, key).requires_grad_(True)


def frozen(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    getattr(module, key).requires_grad_(False)


def module_replaced(net: nn.Module, name: str) -> None:
    path = name.rpartition(".")[0]
    if path:
        old = net.get_submodule(path)
        fresh = nn.Linear(old.in_features, old.out_features).double()
        with torch.no_grad():
            fresh.weight.copy_(old.weight * 0.5)
            fresh.bias.copy_(old.bias)
        setattr(net, path, fresh)


def made_narrow(net: nn.Module, name: str) -> None:
    module, key = holder(net, name)
    t = getattr(module, key)
    t.data = t.data.float().double()


WAYS = [
    in_place,
    by_data,
    data_assigned,
    reassigned,
    assigned_by_load,
    unfrozen,
    frozen,
    module_replaced,
    made_narrow,
]
MOMENTS = ["between", "forward", "loss"]


def fits(name: str, way: Callable[..., None]) -> bool:
    """Whether a user could do this at all."""
    kind = TENSORS[name]
    if name == "wide" and way in (in_place, by_data):
        return False  # torch refuses to write to expanded memory
    if way in (unfrozen, frozen):
        return kind != "buffer"
    if way is made_narrow:
        return name in ("first.weight", "frozen", "floats")
    return way is not module_replaced or kind == "trainable"


class Job:
    """Five steps of training, coded or plain, of which some change a tensor."""

    def __init__(self, name: str, way: Callable[..., None], moment: str) -> None:
        self.name, self.way, self.moment = name, way, moment
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(48, 4, generator=generator, dtype=torch.float64)

    def start(self) -> Net:
        net = Net()
        if self.moment == "forward":
            net.inside = lambda model: self.way(model, self.name)
        return net

    def loss(self, net: Net, x: Tensor) -> Tensor:
        if self.moment == "loss":
            self.way(net, self.name)
        return (net(x) - 1).pow(2).mean()

    def between(self, net: Net, step: int) -> None:
        if self.moment == "between" and step >= CHANGED_IN:
            self.way(net, self.name)

    def update(self, net: Net) -> None:
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None and p.requires_grad:
                    p.sub_(p.grad, alpha=0.01)
                p.grad = None

    def plain(self) -> Net:
        net = self.start()
        for step in range(STEPS):
            self.between(net, step)
            flags = [p.requires_grad for p in net.parameters()]
            self.loss(net, self.x).backward()
            if self.moment != "between":  # a pass leaves no flags behind
                for p, flag in zip(net.parameters(), flags, strict=True):
                    p.requires_grad_(flag)
            self.update(net)
        return net

    def coded(self) -> Net:
        net = self.start()
        sampler = codedgrad.ShardSampler((self.x,), len(self.x), shuffle=False)
        coded = codedgrad.CodedGradient(net, bucket_mb=0.001)
        try:
            for step in range(STEPS):
                self.between(net, step)
                for shards in coded.steps(sampler):
                    coded.backward(lambda x: self.loss(net, x), shards)
                self.update(net)
        finally:
            coded.close()
        return net


def equal_everywhere(net: nn.Module) -> bool:
    h = hashlib.sha256()
    for name, t in net.state_dict().items():
        h.update(name.encode() + t.detach().clone().contiguous().numpy().tobytes())
    blobs = runtime.current().gather(h.digest(), "in a test")
    return len(set(blobs)) == 1


@pytest.fixture
def nobody_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error comes on every worker by itself, so the job can go on with the next."""
    monkeypatch.setattr(runtime.Runtime, "fail", lambda *_: None)


@contextlib.contextmanager
def refused_or_right() -> Iterator[list[str]]:
    told: list[str] = []
    try:
        yield told
    except ConfigError as error:  # `assign=True` replaces all tensors, not one
        told.append(str(error))


CASES = [(n, w, m) for m in MOMENTS for n in TENSORS for w in WAYS if fits(n, w)]


def judge(name: str, way: Callable[..., None], moment: str) -> str:
    """ "right", or "refused: ..."; an assertion fails where it is neither."""
    job = Job(name, way, moment)
    try:
        want = job.plain()
    except RuntimeError as error:  # torch itself refuses
        return f"torch: {error}"
    with refused_or_right() as told:
        got = job.coded()
        assert equal_everywhere(got)
        for (key, ours), theirs in zip(
            got.state_dict().items(), want.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}"
            )
        return "right"
    assert any(f"{key!r}" in told[0] for key in Net().state_dict())
    return f"refused: {told[0]}"


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_change_is_right_or_refused(
    moment: str, nobody_ends_the_job: Any
) -> None:
    wrong = {}
    for name, way, when in CASES:
        if when != moment:
            continue
        try:
            answer = judge(name, way, moment)
        except (Exception, AssertionError) as error:  # noqa: BLE001 (all are shown)
            wrong[name, way.__name__] = f"{type(error).__name__}: {error}"
            continue
        print(moment, name, way.__name__, answer)
    assert not wrong, "\n".join(f"{k}: {v}" for k, v in wrong.items())


# ---- other models, flags, gradients that do not travel ----


class Pair:
    """A model that is trained, and another one in its loss."""

    def __init__(self, other: nn.Module) -> None:
        torch.manual_seed(0)
        self.model, self.other = nn.Linear(4, 3), other
        self.data = (torch.randn(32, 4, generator=torch.Generator().manual_seed(1)),)

    def loss(self, x: Tensor) -> Tensor:
        return self.other(self.model(x)).pow(2).mean()

    def train(self, steps: int = 3, **options: Any) -> None:
        coded = codedgrad.CodedGradient(self.model, **options)
        sampler = codedgrad.ShardSampler(self.data, 16, shuffle=False)
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
    for i in (0, 16, 0, 16):
        whole.zero_grad()
        whole(x[i : i + 16]).pow(2).mean().backward()
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
        sampler = codedgrad.ShardSampler((torch.randn(16, 4),), 8)
        for shards in coded.steps(sampler):
            coded.backward(loss, shards)
            assert all(m.training for m in model.modules())
            assert all(p.requires_grad for p in model.parameters())


def test_a_loss_weight_of_its_own_is_refused(nobody_ends_the_job: Any) -> None:
    for weight in (nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)):
        model = nn.Linear(4, 2)
        coded = codedgrad.CodedGradient(model)
        shards = next(
            codedgrad.ShardSampler((torch.randn(16, 4),), 8).steps(
                coded.code.parts, coded.code.shards
            )
        )
        with pytest.raises(ConfigError, match=r"shape \(1,\)"):
            coded.backward(lambda x, w=weight, m=model: (m(x) * w).mean(), shards)
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
        for shards in coded.steps(codedgrad.ShardSampler((torch.randn(32, 4),), 8)):
            coded.backward(loss, shards)
            model.zero_grad()


def test_an_optimizer_refuses_gradients_of_its_own() -> None:
    model, other = nn.Linear(4, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with codedgrad.CodedGradient(model) as coded:
        for shards in coded.steps(codedgrad.ShardSampler((torch.randn(16, 4),), 8)):
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
        assert coded._payload.layout.count < 100


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
        data = (torch.randn(64, 4),)
        for shards in coded.steps(codedgrad.ShardSampler(data, 8, shuffle=False)):
            coded.backward(lambda x: model(x).pow(2).mean(), shards)
            model.zero_grad()
    want = model.linear(data[0][24:32]).mean(0)
    torch.testing.assert_close(model.centre, want)
    assert equal_everywhere(model)
