"""The state that a worker that comes back is given, from one model to another."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import TensorDataset

from codedgrad.data import ShardSampler
from codedgrad.errors import ConfigError
from codedgrad.groups.comeback import Comeback
from codedgrad.step import carried, live
from codedgrad.step.subject import Subject


class Side:
    """One process's training."""

    def __init__(self, seed: int, width: int = 3) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.model.register_buffer("cache", torch.full((2,), float(seed)), False)
        self.subject = Subject(self.model)
        live.enter(self.subject)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = MultiStepLR(self.optimizer, [1, 1, 4], gamma=0.5)
        self.tracked: dict[str, Any] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        self.sampler = ShardSampler(TensorDataset(torch.ones(8, 2)), 4)

    def step(self) -> Tensor:
        loss = self.model(torch.rand(4, 2)).square().sum() + np.random.rand()  # noqa: NPY002
        self.optimizer.zero_grad()
        (loss * random.random()).backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def packed(self) -> bytearray:
        state = carried.pack(self.subject, self.tracked, self.sampler, {"step": 7})
        return bytearray(carried.encode(state))

    def load(self, data: bytearray) -> dict[str, Any]:
        state = carried.decode(data)
        carried.load(state, self.subject, self.tracked, self.sampler)
        return state


def test_both_go_on_alike() -> None:
    there, here = Side(0), Side(1)
    there.step()
    there.model.eval()
    there.model[0].train()
    there.sampler.set_epoch(3)
    state = here.load(there.packed())
    assert state["coded"] == {"step": 7}
    assert here.sampler.epoch == 3
    assert [m.training for m in here.model] == [True, False]
    assert type(here.schedule.milestones) is Counter
    for mine, theirs in zip(here.subject.places(), there.subject.places(), strict=True):
        assert torch.equal(mine.tensor(), theirs.tensor())  # type: ignore[arg-type]
    assert torch.equal(here.model[0].weight.grad, there.model[0].weight.grad)
    data = there.packed()
    losses = []
    for side in (there, here):
        side.load(data)  # the generators, too
        losses.append([float(side.step()) for _ in range(3)])
    assert losses[0] == losses[1]
    assert torch.equal(here.model[0].weight, there.model[0].weight)


def test_what_does_not_fit_is_named() -> None:
    there = Side(0)
    there.step()
    data = there.packed()
    with pytest.raises(ConfigError, match=r"0.weight is \(4, 2\).*here, and \(3, 2\)"):
        Side(1, width=4).load(data)
    here = Side(1)
    here.tracked["more"] = here.optimizer
    with pytest.raises(ConfigError, match=r"tracked things differ: \['more'\] only"):
        here.load(data)
    here.tracked = {"optimizer": here.optimizer, "schedule": here.optimizer}
    with pytest.raises(ConfigError, match="entries of schedule differ"):
        here.load(data)


def test_what_is_forgotten_is_named() -> None:
    side = Side(0)
    assert carried.why_not(side.subject, {}) == ""  # it has made no step
    side.step()
    assert carried.why_not(side.subject, side.tracked) == ""
    assert "AdamW is not tracked" in carried.why_not(side.subject, {})
    assert "AdamW is not tracked" in carried.why_not(
        side.subject, {"schedule": side.schedule}
    )
    assert "schedule of its AdamW is not" in carried.why_not(
        side.subject, {"optimizer": side.optimizer}
    )


def test_objects_are_refused() -> None:
    side = Side(0)
    side.tracked["odd"] = side
    with pytest.raises(ConfigError, match="takes what has a state_dict"):
        carried.check_tracked(side.tracked)
    del side.tracked["odd"]
    side.schedule.gamma = object()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="something else than tensors"):
        side.load(side.packed())


class Held:
    """Something of the user's own, which keeps another dtype where it is told to."""

    def __init__(self, value: Any, cast: Any = None) -> None:
        self.value, self.cast = value, cast

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = self.cast(state["value"]) if self.cast else state["value"]


def test_what_loading_changes_is_named() -> None:
    there, here = Side(0), Side(1)
    there.tracked["own"] = Held([torch.ones(2, dtype=torch.float64)])
    here.tracked["own"] = Held(None, lambda value: [value[0].float()])
    with pytest.raises(ConfigError, match=r"own\['value'\]\[0\] is .*float32 here"):
        here.load(there.packed())


def test_numbers_of_numpy_stay_what_they_are() -> None:
    there, here = Side(0), Side(1)
    value = [np.float32(0.1), np.arange(6.0).reshape(2, 3), float("nan"), -0.0]
    there.tracked["own"], here.tracked["own"] = Held(value), Held(None)
    here.load(there.packed())
    found = here.tracked["own"].value
    assert type(found[0]) is np.float32
    assert found[0] == value[0]
    assert np.array_equal(found[1], np.arange(6.0).reshape(2, 3))


def test_the_head_of_the_epoch_is_undone() -> None:
    side = Side(0)
    data = side.packed()
    comeback = Comeback.__new__(Comeback)
    comeback._subject, comeback._tracked = side.subject, side.tracked
    comeback._given = data
    expected = torch.get_rng_state()
    torch.randperm(5)
    side.optimizer.param_groups[0]["lr"] = 7.0
    comeback.before_step()
    assert torch.equal(torch.get_rng_state(), expected)
    assert side.optimizer.param_groups[0]["lr"] == 0.1
    torch.randperm(5)
    comeback.before_step()  # only once
    assert not torch.equal(torch.get_rng_state(), expected)
