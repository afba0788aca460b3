"""State that a loss function keeps where no row can carry it is found by name."""

from __future__ import annotations

import functools
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from codedgrad.step import reach
from codedgrad.step.held import _values_of
from codedgrad.step.plain import PlainState
from codedgrad.step.reach import Reached

if TYPE_CHECKING:
    from collections.abc import Callable

_counter = 0
_queue = [torch.zeros(2)]


class Trainer:
    """An object whose method is the loss function."""

    def __init__(self) -> None:
        self.calls, self.mean = 0, torch.zeros(2)
        self.queue: deque[Tensor] = deque()
        self.data = list(range(1000))  # too long to be state

    def count(self) -> None:
        self.calls += 1

    def write(self) -> None:
        self.mean.data.add_(1)

    def assign(self) -> None:
        self.mean = self.mean + 1

    def push(self) -> None:
        self.queue.append(torch.ones(1))

    def read(self) -> Any:
        self.data.append(1)
        return self.mean.sum() + self.calls


def by_closure() -> tuple[Callable[[], None], str]:
    mean, calls = torch.zeros(2), 0

    def inner() -> None:
        nonlocal calls
        calls += 1

    def loss() -> None:
        mean.mul_(2).add_(1)
        inner()

    return loss, "calls"


def by_global() -> tuple[Callable[[], None], str]:
    def loss() -> None:
        global _counter
        _counter += 1
        _queue[0] = _queue[0] + 1

    return loss, "_counter"


def by_default() -> tuple[Callable[[], None], str]:
    def loss(seen: Any = {}) -> None:  # noqa: B006 (users do it)
        seen["n"] = seen.get("n", 0) + 1

    return loss, "seen"


def by_partial() -> tuple[Callable[[], None], str]:
    def loss(mean: Tensor) -> None:
        mean += 1

    return functools.partial(loss, torch.zeros(2)), "argument"


def by_attribute(model: nn.Module) -> tuple[Callable[[], None], str]:
    def loss() -> None:
        model.calls = model.calls + 1  # type: ignore[operator]

    return loss, "'calls' of a Linear"


def by_hook(model: nn.Module) -> tuple[Callable[[], None], str]:
    seen = torch.zeros(2)

    def hook(*_: Any) -> None:
        seen.add_(1)

    model.register_forward_hook(hook)
    return lambda: model(torch.ones(1, 2)).sum(), "seen"


def ways(model: nn.Module) -> list[tuple[Callable[[], Any], str]]:
    one = Trainer()
    return [
        (one.count, "self.calls"),
        (one.write, "self.mean"),
        (one.assign, "self.mean"),
        (one.push, "the length of self.queue"),
        by_closure(),
        by_global(),
        by_default(),
        by_partial(),
        by_attribute(model),
        by_hook(model),
    ]


@pytest.mark.parametrize("number", range(len(ways(nn.Linear(1, 1)))))
def test_what_changes_is_named_once(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(2, 2)
    model.calls = 0  # type: ignore[assignment]
    loss, name = ways(model)[number]
    before = Reached(loss, [model])
    assert not Reached(loss, [model]).changed(before)
    loss()
    assert any(name in n for n in Reached(loss, [model]).changed(before))
    plain = PlainState()
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        for _ in range(2):
            plain.begin(loss, [model])
            loss()
            plain.end(finished=True)
    assert len([r for r in caplog.records if name in r.getMessage()]) == 1


def test_what_is_only_read_is_not_named() -> None:
    model, one = nn.Linear(2, 2), Trainer()
    before = Reached(one.read, [model])
    one.read()
    assert Reached(one.read, [model]).changed(before) == ["the length of self.data"]
    quiet = [lambda: model(torch.ones(1, 2)).sum(), lambda: torch.rand(2), min]
    for loss in quiet:
        before = Reached(loss, [model])
        loss() if loss is not min else None  # type: ignore[operator]
        assert not Reached(loss, [model]).changed(before)


def test_a_model_that_is_used_without_a_call_is_found() -> None:
    model, teacher = nn.Linear(2, 2), nn.Linear(2, 2)

    def loss() -> Tensor:
        with torch.no_grad():
            teacher.weight.mul_(0.9)
        return nn.functional.linear(torch.ones(1, 2), teacher.weight).sum()

    plain = PlainState()
    plain.begin(loss, [model])
    assert plain.changed_entries() == []
    plain.begin(loss, [model])
    loss()
    assert [e.title for e in plain.changed_entries()] == ["'weight' of a Linear"]
    plain.begin(lambda: model(torch.ones(1, 2)), [model])
    assert plain.changed_entries() == []


def test_a_look_at_values_takes_a_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps look at what a loss function holds, so the time must not be quadratic."""
    held = {f"value{i}": float(i) for i in range(30)}
    asked: list[str] = []
    words = reach._words
    monkeypatch.setattr(reach, "_words", lambda name: asked.append(name) or words(name))
    strict, own = _values_of(lambda: held["value1"], [], set(), full=True)
    assert len({**strict, **own}) == 30
    assert len(asked) == len(set(asked))
