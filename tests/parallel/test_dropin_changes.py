"""Models and optimizers that change in the middle of a training with the drop-in.

Each way is something that users do between two steps. The result is that of plain torch
in one process, or an error; no gradient is ever a worker's own without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_watch import nobody_ends_the_job as nobody_ends_the_job
from torch import Tensor, nn

import codedgrad
from codedgrad import CodedGradError
from codedgrad.hvd.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[nn.Module, torch.optim.Optimizer], None]

STEPS, AT, OWN = 6, 2, 4


class Net(nn.Module):
    """A frozen body, a head, and a parameter that nobody uses at first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.body.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))) * self.scale + self.shift


def unfreeze(model: Any, _optimizer: Any) -> None:
    model.body.requires_grad_(True)


def unfreeze_into_a_group(model: Any, optimizer: Any) -> None:
    model.body.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.05})


def freeze(model: Any, _optimizer: Any) -> None:
    model.scale.requires_grad_(False)
    model.scale.grad = None


def replace_and_tell(model: Any, optimizer: Any) -> None:
    model.scale = nn.Parameter(torch.full((1,), 2.0))
    optimizer.param_groups[0]["params"][-1] = model.scale


def replace_alone(model: Any, _optimizer: Any) -> None:
    model.scale = nn.Parameter(torch.full((1,), 2.0))


def load_by_assigning(model: Any, _optimizer: Any) -> None:
    state = {k: v.clone() * 0.5 for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def write_data(model: Any, _optimizer: Any) -> None:
    model.scale.data = torch.full((1,), 2.0)


def assign_buffer(model: Any, _optimizer: Any) -> None:
    model.shift = torch.ones(1)


def new_module(model: Any, optimizer: Any) -> None:
    model.head = nn.Linear(4, 1)
    with torch.no_grad():
        for p in model.head.parameters():
            p.fill_(0.3)
    optimizer.add_param_group({"params": list(model.head.parameters())})


def other_type(model: Any, _optimizer: Any) -> None:
    model.double()


def drop_state(_model: Any, optimizer: Any) -> None:
    optimizer.state.clear()


WAYS: list[Way] = [
    unfreeze,
    unfreeze_into_a_group,
    freeze,
    replace_and_tell,
    replace_alone,
    load_by_assigning,
    write_data,
    assign_buffer,
    new_module,
    other_type,
    drop_state,
]


def data() -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, OWN * codedgrad.size(), 3, generator=g)


def train(way: Way, *, listed: bool, coded: bool) -> list[Tensor]:
    """Returns the parameters at the end; `listed`: the optimizer has them all."""
    model, rank = Net(), codedgrad.rank()
    held = [p for p in model.parameters() if listed or p.requires_grad]
    optimizer = torch.optim.SGD(held, lr=0.1, momentum=0.5)
    if coded:
        codedgrad.DistributedOptimizer(optimizer, model=model)
    try:
        for step, x in enumerate(data()):
            if step == AT:
                way(model, optimizer)
            own = x[OWN * rank : OWN * rank + OWN] if coded else x
            model(own.to(model.head.weight.dtype)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        if coded:
            detach(optimizer)
    return [p.detach().double() for p in model.parameters()]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_as_plain_torch_or_an_error(
    way: Way, listed: bool, nobody_ends_the_job: Any
) -> None:
    try:
        want = train(way, listed=listed, coded=False)
    except (RuntimeError, ValueError):  # it is an error of torch's as well
        return
    try:
        got = train(way, listed=listed, coded=True)
    except CodedGradError as error:
        assert str(error)  # noqa: PT017 (either is right)
        return
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
