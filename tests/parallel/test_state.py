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
