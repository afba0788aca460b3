"""What a loss function or collate_fn holds changes on one worker, after the start."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_loss_functions import OWN, net
from torch import Tensor, nn
from torch.nn import functional as F

import codedgrad
from codedgrad import codes
from codedgrad.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Tensor, Tensor], Tensor]

_changes: list[Callable[[str], None]] = []
STEPS, AT = 12, 4  # values are compared in steps 3, 5 and 9
_scale = 1.0


class Focal(nn.Module):
    """A criterion with a setting that it does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = 2.0
        self.register_buffer("weight", torch.ones(3))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, self.weight) * self.gamma


class Kept:
    """A loss function of every kind of value, and a way to change each."""

    def __init__(self) -> None:
        global _scale
        _scale = 1.0
        self.model, self.alpha = net(), 1.0
        self.criterion, self.teacher = Focal(), net()
        self.settings = argparse.Namespace(margin=3, name="mean")
        factor, tensor = 1.0, torch.ones(())

        def change(name: str) -> None:
            nonlocal factor
            if name == "closure":
                factor = 0.97 * factor
            elif name == "another type":
                factor = 2
            elif name == "tensor":
                tensor.mul_(0.97)

        def by_closure(x: Tensor, y: Tensor, default: float = 1.0) -> Tensor:
            return factor * F.cross_entropy(self.model(x), y) * tensor * default

        def by_keyword(x: Tensor, y: Tensor, *, factor: float = 1.0) -> Tensor:
            return factor * by_closure(x, y)

        self.by_closure, self.by_keyword = by_closure, by_keyword
        _changes[:] = [change]  # which no pass can reach

    def by_global(self, x: Tensor, y: Tensor) -> Tensor:
        return _scale * self.alpha * F.cross_entropy(self.model(x), y)

    def by_criterion(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.model(x)
        apart = (out - self.teacher(x).detach()).square().mean()
        return self.criterion(out, y) + self.settings.margin * apart


def change_global(_: Kept) -> None:
    global _scale
    _scale *= 0.97


def set_to(holder: str, key: str, value: Any) -> Callable[[Kept], None]:
    return lambda kept: setattr(getattr(kept, holder), key, value)


def write(holder: str, name: str) -> Callable[[Kept], None]:
    return lambda kept: getattr(kept, holder).state_dict()[name].mul_(0.9)


# Which loss function, what changes, and what the error says; "" where a warning does.
WAYS: dict[str, tuple[str, Callable[[Kept], None], str]] = {
    "closure": ("by_closure", lambda _: _changes[0]("closure"), "factor"),
    "another type": ("by_closure", lambda _: _changes[0]("another type"), "factor"),
    "tensor": ("by_closure", lambda _: _changes[0]("tensor"), "tensor"),
    "default": ("by_closure", set_to("by_closure", "__defaults__", (2.0,)), "default"),
    "keyword": (
        "by_keyword",
        set_to("by_keyword", "__kwdefaults__", {"factor": 2.0}),
        "factor",
    ),
    "global": ("by_global", change_global, "_scale"),
    "buffer": ("by_criterion", write("criterion", "weight"), "'weight' of Focal"),
    "teacher": ("by_criterion", write("teacher", "0.bias"), "'bias' of Linear"),
    "setting": ("by_criterion", set_to("criterion", "gamma", 2.3 / 7), ""),
    "margin": ("by_criterion", set_to("settings", "margin", 7), ""),
}


def train(kept: Kept, loss: Loss, each: Callable[[int], None], **how: Any) -> None:
    n = codedgrad.size()
    g = torch.Generator().manual_seed(1)
    total = OWN * n * STEPS
    x, y = torch.randn(total, 5, generator=g), torch.arange(total) % 3
    collate = how.pop("collate_fn", None)
    dataset = torch.utils.data.TensorDataset(x, y)
    sampler = codedgrad.ShardSampler(dataset, OWN * n, collate_fn=collate)
    code = how.pop("code", None) or codes.uncoded(n, micro=1)
    with codedgrad.CodedGradient(kept.model, code, **how) as coded:
        for step, shards in enumerate(coded.steps(sampler)):
            each(step)
            coded.backward(loss, shards)
            kept.model.zero_grad()


def alone() -> bool:
    return codedgrad.rank() == codedgrad.size() - 1 and codedgrad.size() > 1


@pytest.mark.parametrize("by_all", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_one_worker_changes_it(
    name: str, by_all: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kept, (which, change, said) = Kept(), WAYS[name]
    loss = getattr(kept, which)

    def each(step: int) -> None:
        if step == AT and (by_all or alone()):
            change(kept)

    with caplog.at_level(logging.WARNING, "codedgrad"):
        if said and not by_all and codedgrad.size() > 1:
            with pytest.raises(MismatchError, match=rf"holds in step 5: .*{said}"):
                train(kept, loss, each)
            return
        train(kept, loss, each)
    told = [r for r in caplog.records if "hold different values" in r.getMessage()]
    wanted = not by_all and codedgrad.size() > 1 and codedgrad.rank() == 0
    assert len(told) == wanted


class Collate:
    """Makes batches of one's own scale."""

    def __init__(self, scale: Any) -> None:
        self.scale = scale

    def __call__(self, items: list[Any]) -> Any:
        x = torch.stack([x for x, _ in items])
        return float(self.scale) * x, torch.stack([y for _, y in items])


def collate_by(scale: list[float], first: float) -> Callable[[list[Any]], Any]:
    def collate(items: list[Any]) -> Any:
        return Collate(first * scale[0])(items)

    return collate


@pytest.mark.parametrize("later", [False, True])
def test_a_collate_function_of_ones_own(
    later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kept, scale = Kept(), [1.0]

    def each(step: int) -> None:
        if later and step == AT and alone():
            scale[0] = 2.0

    first = 2.0 if alone() and not later else 1.0
    collate = collate_by(scale, first)
    if codedgrad.size() > 1 and not later:
        with pytest.raises(MismatchError, match="collate_fn's first"):
            train(kept, kept.by_global, each, collate_fn=collate)
        return
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(kept, kept.by_global, each, collate_fn=collate)
    told = any("collate_fn's scale[0]" in r.getMessage() for r in caplog.records)
    assert told == (codedgrad.size() > 1 and codedgrad.rank() == 0)


@pytest.mark.parametrize("late", [False, True])
def test_what_passes_change_is_no_difference(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each worker's passes have other losses, and a late one makes fewer."""
    kept, n = Kept(), codedgrad.size()
    total, best, seen, meter = 0.0, 9.0, [1.0], torch.zeros(())
    last = torch.zeros(())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        nonlocal total, best, last
        value = kept.by_global(x, y)
        total += value.item()
        best = min(best, value.item())
        seen.append(value.item())
        meter.add_(value.detach())
        last = value.detach()
        kept.settings.margin += 1
        return value

    how: dict[str, Any] = {"code": codes.spread(n, micro=2), "patience": 0.0}
    if late and n > 1:
        how["faults"] = "slow:worker=0,factor=6"
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(kept, loss, lambda _: None, **how)
    texts = [r.getMessage() for r in caplog.records]
    assert not [t for t in texts if "hold different values" in t]
    assert len(seen) > 1 or codedgrad.size() > 1


def test_functions_that_take_turns_are_compared_too() -> None:
    """The second one is first called in step 1, and then in every other step."""
    kept, n = Kept(), codedgrad.size()
    scale = 2.0 if alone() else 1.0

    def other(x: Tensor, y: Tensor) -> Tensor:
        return scale * F.cross_entropy(kept.model(x), y)

    coded = codedgrad.CodedGradient(kept.model, codes.uncoded(n, micro=1))
    x, y = torch.randn(4 * OWN * n, 5), torch.arange(4 * OWN * n) % 3
    sampler = codedgrad.ShardSampler((torch.ones_like(x), y), OWN * n)

    def steps() -> None:
        for step, shards in enumerate(coded.steps(sampler)):
            coded.backward(other if step % 2 else kept.by_global, shards)

    if n > 1:
        with pytest.raises(MismatchError, match=r"holds in step 1: .*scale"):
            steps()
    else:
        steps()
    coded.close()
