"""Workers whose models drift apart after the start are told so, in both faces.

Each way is something that a script can do on one worker alone: on the last one, here.
Done on all workers alike, none is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from parallel.training import everywhere
from torch import Tensor, nn

import codedgrad
from codedgrad import codes
from codedgrad.errors import MismatchError
from codedgrad.hvd.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, AT = 6, 3  # values are compared in steps 0, 1, 2 and 4
LATER = 40  # a step after which no values are compared as a whole for long


class Net(nn.Module):
    """Trainable and frozen parameters, statistics, a constant, a cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("own", torch.zeros(2))
        self._ddp_params_and_buffers_to_ignore = ["own"]

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(x)))
        return self.second(hidden) * self.frozen * self.scale


def write(name: str) -> Callable[[Net, Any], None]:
    """Write to a tensor as no version counter sees it."""

    def way(model: Net, _optimizer: Any) -> None:
        dict([*model.named_parameters(), *model.named_buffers()])[name].data.add_(0.5)

    return way


def learn_faster(_model: Net, optimizer: Any) -> None:
    optimizer.param_groups[0]["lr"] *= 1.5


def forget_momentum(_model: Net, optimizer: Any) -> None:
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()


def assign_frozen(model: Net, _optimizer: Any) -> None:
    model.scale = torch.full((1,), 0.5)


def load(model: Net, _optimizer: Any) -> None:
    model.load_state_dict({n: t + 1 for n, t in model.state_dict().items()})


def pass_by_hand(model: Net, _optimizer: Any) -> None:
    with torch.no_grad():
        model(torch.ones(3, 4) * torch.arange(3)[:, None])


def scale_gradients(model: Net, _optimizer: Any) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)


# Before the step, but for the last, which is done after the backward.
WAYS = {
    "lr": learn_faster,
    "momentum": forget_momentum,
    "weight": write("first.weight"),
    "frozen": write("frozen"),
    "constant": assign_frozen,
    "statistics": write("norm.running_mean"),
    "load": load,
    "pass": pass_by_hand,
    "clip": scale_gradients,
}
OWN = {"cache": write("cache"), "own": write("own")}


def train(
    face: str, way: Callable[[Net, Any], None] | None, *, clip: bool, at: int = AT
) -> Net:
    """Train; `way` is what this worker does on top in step `at`."""
    model = Net()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.5
    )
    n = codedgrad.size()
    x = torch.randn(8 * n, 4, generator=torch.Generator().manual_seed(1))
    code = codes.uncoded(n, micro=1)  # every worker's row counts in every step
    coded = None
    if face == "coded":
        coded = codedgrad.CodedGradient(model, code)
    else:
        codedgrad.DistributedOptimizer(optimizer, model=model)
    rank = codedgrad.rank()
    try:
        for step in range(STEPS if at == AT else at + 16):
            if step == at and way is not None and not clip:
                way(model, optimizer)
            if coded is not None:
                sampler = codedgrad.ShardSampler((x,), 8 * n, shuffle=False)
                for shards in coded.steps(sampler):
                    coded.backward(lambda x: model(x).pow(2).mean(), shards)
            else:
                model(x[8 * rank : 8 * rank + 8]).pow(2).mean().backward()
            if step == at and way is not None and clip:
                way(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        if coded is not None:
            coded.close()
        else:
            detach(optimizer)
    return model


def alike(model: Net) -> bool:
    state = {n: t.tolist() for n, t in model.state_dict().items() if n != "own"}
    return len(set(everywhere(str(state)))) == 1


@pytest.mark.parametrize("face", ["coded", "drop-in"])
@pytest.mark.parametrize("name", WAYS)
def test_one_worker_alone_is_told(face: str, name: str) -> None:
    last = codedgrad.rank() == codedgrad.size() - 1
    if codedgrad.size() > 1:
        # In the drop-in this forward is one of the step, so what it changes travels.
        if (face, name) == ("drop-in", "pass"):
            assert alike(train(face, WAYS[name] if last else None, clip=False))
            return
        with pytest.raises(MismatchError, match=r"before step 4: worker \d+ has "):
            train(face, WAYS[name] if last else None, clip=name == "clip")
    assert alike(train(face, WAYS[name], clip=name == "clip"))


@pytest.mark.parametrize("face", ["coded", "drop-in"])
@pytest.mark.parametrize("name", ["lr", "load"])
def test_what_changes_all_tensors_is_found_soon(face: str, name: str) -> None:
    last = codedgrad.rank() == codedgrad.size() - 1
    if codedgrad.size() > 1:
        with pytest.raises(MismatchError, match=r"before step 48: worker \d+ has "):
            train(face, WAYS[name] if last else None, clip=False, at=LATER)


@pytest.mark.parametrize("face", ["coded", "drop-in"])
@pytest.mark.parametrize("name", OWN)
def test_what_belongs_to_each_worker_is_not_compared(face: str, name: str) -> None:
    last = codedgrad.rank() == codedgrad.size() - 1
    assert alike(train(face, OWN[name] if last else None, clip=False))


def test_modules_that_show_other_settings() -> None:
    if codedgrad.size() == 1:
        return
    last = codedgrad.rank() == codedgrad.size() - 1
    pairs = [
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.ReLU(), nn.Tanh()),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    ]
    for one, other in pairs:
        model = nn.Sequential(nn.Linear(2, 2), other if last else one)
        with pytest.raises(MismatchError, match="has module '1' = "):
            codedgrad.CodedGradient(model)


def test_one_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    n = codedgrad.size()
    coded = codedgrad.CodedGradient(model, codes.uncoded(n, micro=1))
    sampler = codedgrad.ShardSampler((torch.ones(8 * n, 4),), 4 * n)

    def train() -> None:
        for shards in coded.steps(sampler):
            coded.backward(lambda x: model(x).pow(2).mean(), shards)
            model.train(codedgrad.rank() != n - 1)

    if n == 1:
        train()
    else:
        with pytest.raises(MismatchError, match="training mode of Sequential 0 = "):
            train()
    coded.close()
