"""The search measures, chooses by its rule, and may answer "exact only"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.learned import Distillation
from codedgrad.inference.search import Candidate, Design, Search, design
from codedgrad.inference.search.table import choose

QUICK = Distillation(steps=20, timed=16, width=4, lr=1e-2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def candidate(name: str, cost: float, agreement: float, trusted: float) -> Candidate:
    return Candidate(
        name, cost, agreement, trusted, exact=agreement == 1 == trusted, others=0
    )


REPLICA = candidate("replica", 1.0, 1.0, 1.0)
SMALL = candidate("small", 0.1, 0.97, 0.9)
LARGE = candidate("large", 0.2, 0.99, 0.95)
PARITY = candidate("parity", 0.2, 0.4, 0.0)
NEAR = candidate("near", 0.15, 0.985, 0.97)


@pytest.mark.parametrize(
    ("budget", "tried", "name", "says"),
    [
        (1.0, [REPLICA, LARGE], "replica", "it is exact"),
        (0.25, [REPLICA, SMALL, LARGE, PARITY], "large", "95.0 %"),
        (0.25, [LARGE, NEAR], "near", "within a point"),
        (0.12, [REPLICA, SMALL, LARGE], "small", "97.00 %"),
        (0.25, [REPLICA, PARITY], None, "no answer may be trusted; the best, parity"),
        (0.05, [REPLICA, SMALL], None, "nothing fits 5.0 %.*small, takes 10.0 %"),
        (0.05, [], None, "nothing could be tried"),
    ],
)
def test_the_rule(
    budget: float, tried: list[Candidate], name: str | None, says: str
) -> None:
    choice, why = choose(tried, budget)
    assert (choice.name if choice else None) == name
    assert Design(tuple(tried), choice, why, budget).stand_in is None
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(why)


def test_never_a_point_below_the_best_that_fits() -> None:
    numbers = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).tolist()
    tried = [candidate(str(i), *row) for i, row in enumerate(numbers)]
    for budget in (0.1, 0.3, 0.7):
        choice, _ = choose(tried, budget)
        fitting = [one for one in tried if one.cost <= budget]
        assert choice is not None
        assert choice.agreement >= max(one.agreement for one in fitting) - 0.01


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(2, 16, 3, padding=1), nn.ReLU())
    more = nn.Sequential(nn.Conv1d(16, 64, 3, padding=1), nn.ReLU())
    return nn.Sequential(conv, more, nn.Flatten(), nn.Linear(512, 4))


def test_every_kind_is_tried_and_the_table_tells() -> None:
    x = torch.randn(600, 2, 8, generator=torch.Generator().manual_seed(1))
    found = design(classifier(), x.split(200), 10.0, 0.2, Search(training=QUICK))
    names = [one.name for one in found.candidates]
    for name in (
        "replica",
        "batch replica",
        "split linear",
        "the model in bfloat16",
        "parity sum",
        "collage",
        "mixed after 0 stages",
        "mixed after 1 stages",
        "Berrut",
        "Berrut, systematic",
        "splines",
    ):
        assert name in names, found.left_out
    assert sum(name.startswith("stand-in, width 4") for name in names) == 3
    assert found.left_out == ()
    for one in found.candidates:
        assert one.cost > 0
        assert 0 <= one.agreement <= 1
        if one.exact:
            assert one.agreement == 1
    text = str(found)
    assert text.count("\n") == len(names) + 1
    assert found.choice is not None
    assert text.splitlines()[-1] == f"{found.choice.name}: {found.why}"
    assert "chosen" in text


def test_what_cannot_be_tried_is_said_and_exact_only_is_an_answer() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise ConfigError("float32 only")
            return x.sum((1, 2))[:, None] * torch.ones(3)

    x = torch.randn(200, 2, 8)
    with pytest.warns(UserWarning, match="no stages"):
        found = design(Picky(), x, 1e-9, 0.01, Search(training=QUICK, mixing=False))
    assert found.choice is None
    assert found.stand_in is None
    assert "low precision (float32 only)" in found.left_out
    assert "exact only: nothing fits" in str(found)


def test_what_is_refused() -> None:
    x = torch.randn(200, 2, 8)
    for budget in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="budget is the extra time"):
            design(classifier(), x, budget)
    with pytest.raises(ConfigError, match="100 inputs or more"):
        design(classifier(), x[:50])
    with pytest.raises(ConfigError, match="one tensor or three"):
        design(classifier(), (x, x))
