"""Boundaries: all in the passes that learn, then few, at about equal times."""

from __future__ import annotations

import torch
from torch import nn

from codedgrad.step.boundaries import MOST, Abandoned, Boundaries, spread_out


class Counter:
    """Counts visits, and abandons a pass at one of them."""

    def __init__(self, leave_at: int = 10**9) -> None:
        self.visits = 0
        self._leave_at = leave_at

    def visit(self) -> None:
        self.visits += 1
        if self.visits == self._leave_at:
            raise Abandoned


def one_pass(
    boundaries: Boundaries, model: nn.Module, x: torch.Tensor, leave_at: int = 10**9
) -> int:
    counter = Counter(leave_at)
    try:
        with boundaries.watch(counter):
            model(x).sum().backward()
    except Abandoned:
        pass
    return counter.visits


def deep(layers: int = 50) -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))


def test_few_boundaries_after_two_passes() -> None:
    model, x = deep(), torch.ones(2, 4)
    boundaries = Boundaries(list(model.modules()))
    counts = [one_pass(boundaries, model, x) for _ in range(4)]
    # The root's and every layer's forward, and the first gradient of every layer.
    assert counts[:2] == [101, 101]
    assert 0 < counts[2] <= MOST
    assert counts[3] == counts[2]
    boundaries.remove()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_nothing_is_learned_from_an_abandoned_pass() -> None:
    model, x = deep(), torch.ones(2, 4)
    boundaries = Boundaries(list(model.modules()))
    one_pass(boundaries, model, x)
    assert [one_pass(boundaries, model, x, leave_at=3) for _ in range(3)] == [3] * 3
    assert one_pass(boundaries, model, x) == 101
    assert one_pass(boundaries, model, x) <= MOST


def test_another_way_through_the_model() -> None:
    """A pass that meets few of the chosen places lets them be chosen again."""
    model = nn.ModuleDict({"a": deep(), "b": deep()})
    x = torch.ones(2, 4)
    boundaries = Boundaries(list(model.modules()))
    for name in "aab":
        counter = Counter()
        with boundaries.watch(counter):
            model[name](x).sum().backward()
    counts = [one_pass(boundaries, model["b"], x) for _ in range(2)]
    assert counts[0] == 100
    assert 0 < counts[1] <= MOST


def test_a_module_that_is_called_often_counts_as_often() -> None:
    visits = [(0, 0.0), (1, 0.1), *((2, 0.2 + 0.01 * i) for i in range(50)), (3, 0.9)]
    assert spread_out(visits, 0.0, 1.0) == {0, 1, 3}
    assert spread_out(visits[2:-1], 0.0, 1.0) == {2}
    assert spread_out([], 0.0, 1.0) == set()


def test_equal_times() -> None:
    visits = [(i, i / 100) for i in range(100)]
    places = sorted(spread_out(visits, 0.0, 1.0))
    assert len(places) == MOST
    assert all(abs(p - 12.5 * i) <= 1 for i, p in enumerate(places))


def test_a_short_pass_has_fewer() -> None:
    visits = [(i, i * 4e-5) for i in range(100)]
    places = sorted(spread_out(visits, 0.0, 4e-3))
    assert places == [0, 25, 50, 75]


def test_in_the_middle_of_equal_parts_where_nobody_is_slowed() -> None:
    """The begin of a pass needs no boundary then, and a very short one has one."""
    visits = [(i, i * 1e-3) for i in range(80)]
    assert spread_out(visits, 0.0, 0.08, slowed=False) == set(range(5, 80, 10))
    visits = [(i, i * 1e-6) for i in range(100)]
    assert spread_out(visits, 0.0, 1e-4, slowed=False) == {50}
