"""What a rehearsal is made of: cutting a batch, putting values back, comparing."""

from __future__ import annotations

import functools
import sys
import types
from collections import UserDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from codedgrad.integrations.loaders import Batch
from codedgrad.job.likeness import hardware
from codedgrad.step.alike import FunctionsOfAll
from codedgrad.step.compare import (
    Value,
    answers_as_weights,
    difference,
    means_as_weights,
)
from codedgrad.step.functions import code_digest, code_of, code_parts, codes_of
from codedgrad.step.held import differ
from codedgrad.step.reach import Reached
from codedgrad.step.slices import cut

_global = 1
X = torch.arange(10.0).reshape(5, 2)


def test_a_batch_is_cut() -> None:
    batch = ({"x": X, "n": 3, "names": list("abcde")}, [X, None], (X[:, 0], "text"))
    first, second = cut(batch, [2, 3]) or ((), ())
    assert first[0]["names"] == ["a", "b"]
    assert second[0]["names"] == ["c", "d", "e"]
    assert torch.equal(second[0]["x"], X[2:])
    assert torch.equal(first[1][0], X[:2])
    assert first[0]["n"] == 3
    assert second[2][1] == "text"


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Made:
    x: torch.Tensor
    size: int = 3


@pytest.mark.parametrize("batch", [UserDict(x=X), Pair(X, X), Made(X), Batch({"x": X})])
def test_batches_of_other_types_are_cut(batch: Any) -> None:
    (one,), (other,) = cut((batch,), [2, 3]) or ((), ())
    assert type(one) is type(other) is type(batch)
    if isinstance(batch, Batch):
        one, other = one.value, other.value
    one, other = (v["x"] if isinstance(v, Mapping) else v.x for v in (one, other))
    assert torch.equal(torch.cat([one, other]), X)
    assert len(one) == 2


@pytest.mark.parametrize("batch", [(X.T,), (X, object()), ({1, 2},)])
def test_what_cannot_be_cut(batch: Any) -> None:
    assert cut(batch, [2, 3]) is None


class Holder:
    """Something with state."""

    def __init__(self) -> None:
        self.n, self.t, self.items = 1, torch.zeros(2), [1, 2]
        self.queue, self.table = deque([1, 2], maxlen=2), {"a": 1}
        self.long = list(range(10_000))
        self.counts, self.names = dict.fromkeys(range(40), 0), {"a"}
        self.array = np.zeros(2)
        self.generators = torch.Generator(), np.random.default_rng(1), Random(1)

    def change(self) -> None:
        self.n += 1
        self.t.data.add_(1)
        self.items.append(3)
        self.queue.append(3)
        self.table["b"] = 2
        self.table["a"] = 5
        self.long.append(1)
        self.counts[7] += 1
        self.names.add("b")
        self.array += 1
        torch.rand(1, generator=self.generators[0])
        self.generators[1].random()
        self.generators[2].random()


def test_what_is_reached_is_put_back() -> None:
    holder, inner, model = Holder(), [0], nn.Linear(1, 1)
    model.calls = 0
    cell = 0

    def loss() -> None:
        nonlocal cell
        global _global
        cell += 1
        _global += 1
        inner[0] += 1
        model.calls += 1
        holder.change()

    before = Reached(loss, [model], keep=True)
    drawn = [g.random() for g in Holder().generators[1:]]
    loss()
    assert before.drawn()
    before.put_back()
    assert not before.drawn()
    assert [g.random() for g in holder.generators[1:]] == drawn
    assert (holder.counts[7], holder.names) == (0, {"a"})
    assert holder.array.tolist() == [0.0, 0.0]
    assert (cell, inner, model.calls, holder.n, _global) == (0, [0], 0, 1, 1)
    assert holder.t.tolist() == [0.0, 0.0]
    assert holder.items == [1, 2]
    assert list(holder.queue) == [1, 2]
    assert holder.table == {"a": 1}
    assert len(holder.long) == 10_000
    assert not Reached(loss, [model]).changed(before)


def test_a_large_model_hides_nothing_of_the_loss_function() -> None:
    model, factor = nn.Sequential(*(nn.Linear(1, 1) for _ in range(2500))), 0.5
    found = dict(Reached(lambda x: factor * model(x), model.modules()).plain())
    assert found["factor"] == 0.5
    assert "'in_features' of a Linear" in found


def test_all_that_a_function_is_made_with_is_reached() -> None:
    def loss(a: float, b: float, c: float = 1.5, d: float = 2.5, *, e: Any = 3) -> Any:
        return a * b * c * d * e

    class Called:
        def __init__(self) -> None:
            self.beta = 5.5

        def __call__(self, x: Any) -> Any:
            return x * self.beta * _global

    found = dict(Reached(functools.partial(loss, 7, b=4.5), []).plain())
    assert found == {"argument 0": 7, "b": 4.5, "c": 1.5, "d": 2.5, "e": 3}
    found = dict(Reached(Called(), []).plain())
    assert found == {".beta": 5.5, "_global": _global}
    twice = [functools.partial(min, key) for key in (0.5, 0.25)]
    found = dict(Reached(lambda x: [f(x) for f in twice], []).plain())
    assert sorted(found.values()) == [0.25, 0.5]


def test_attributes_are_no_globals() -> None:
    """The code below names `_global`, as an attribute of something else."""
    assert "_global" not in dict(Reached(lambda x: x._global, []).plain())
    assert "_global" in dict(Reached(lambda x: x + _global, []).plain())


def value(loss: float, weight: float | None = None, *, random: bool = False) -> Value:
    return Value(loss, weight, None, False, random)


def test_the_mean_of_pieces() -> None:
    assert difference(value(2.0), [value(1.0), value(2.5)], [1, 2]) == (True, "")
    assert difference(value(4.0), [value(1.0), value(3.0)], [1, 1])[1]
    assert difference(value(2.0), [value(1.0), value(float("nan"))], [1, 1])[1]
    # Weights in the place of samples, and a piece that has nothing to say.
    pieces = [value(1.0, 3.0), value(float("nan"), 0.0)]
    assert difference(value(1.0, 3.0), pieces, [1, 1]) == (True, "")
    assert not difference(value(float("nan"), 0.0), pieces, [1, 1])[0]


@pytest.mark.parametrize(
    ("whole", "pieces", "wrong"),
    [
        (12.0, [3.0, 4.0, 5.0, 0.0], False),
        (0.5, [0.5, 0.25, 0.75, 0.5], True),
        (53.1, [50.0, 60.0, 40.0, 62.4], True),
        (7.0, [7.0, 7.0, 7.0, 7.0], True),
        (1.0, [1.0, 1.0, 1.0, 1.0], False),  # perhaps at least 1 by decree
        (0.8, [0.1, 0.2, 0.2, 0.3], False),
        (0.0, [0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_weights_add_up(whole: float, pieces: list[float], wrong: bool) -> None:
    known, text = means_as_weights(value(1.0, whole), [value(1.0, w) for w in pieces])
    assert bool(text) == wrong
    assert known == (whole > 1.0 or not whole.is_integer())


@pytest.mark.parametrize(
    ("losses", "weights", "known", "wrong"),
    [
        ([1.5, 1.0, 2.0], [3.0, 1.0, 2.0], False, True),  # a mean over samples
        ([5 / 3, 1.0, 2.0], [3.0, 1.0, 2.0], True, False),  # over what it counts
        ([1.5, 1.0, 2.0], [4.0, 2.0, 2.0], False, False),  # nobody knows
        ([1.5, 1.0, 2.0], [3.996, 1.998, 1.998], False, False),
        ([1.5, 1.0, 2.0], [4.0, 1.999, 2.001], False, True),  # that is not rounding
        ([9.0, 1.0, 2.0], [3.0, 1.0, 2.0], False, True),  # another function
        ([2.0, 1.0, 2.0], [2.0, 0.0, 2.0], True, False),
        ([float("nan"), 1.0, 2.0], [0.0, 1.0, 2.0], False, False),
    ],
)
def test_weights_that_depend_on_the_parameters(
    losses: list[float], weights: list[float], known: bool, wrong: bool
) -> None:
    values = [value(x, w) for x, w in zip(losses, weights, strict=True)]
    right, text = answers_as_weights((3.0, 4.0), values, [2, 2])
    assert (right, bool(text)) == (known, wrong)
    assert answers_as_weights((3.0, 4.0), [], [])[1]


def functions(number: int) -> Any:
    def inner() -> int:
        return 7

    return lambda x: (x + 1, number, inner())


def min_of(x: Any) -> Any:
    return min(x)


def max_of(x: Any) -> Any:
    return max(x)


def test_the_code_of_functions() -> None:
    same = functions(1), functions(2)
    assert code_of(same[0]) is code_of(same[1])
    assert code_digest(same[0]) == code_digest(same[1])  # values do not count
    wrapped = [torch.no_grad()(f) for f in (min_of, max_of)]
    assert code_of(wrapped[0]) is code_of(min_of)
    made = [functools.partial(min, f) for f in (min_of, max_of)]
    assert len({codes_of(f) for f in (*wrapped, *made)}) == 4
    others = [
        *(lambda x: x + 1, lambda x: x - 1, lambda x: x + 2, lambda y: y + 1),
        *(functools.partial(min, 1), functools.partial(max, 1), min, Holder().change),
        *(nn.L1Loss(), nn.MSELoss(), nn.SmoothL1Loss(beta=2.0)),
        *(nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    ]
    assert len({code_digest(f) for f in others}) == len(others)


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ([1, 1], False),
        ([0, 1, 2], False),
        ([3, 4], True),
        ([True, False, False], False),
        ([False, True, False], True),
        (["cuda:0", "cuda:1"], False),
        (["mean", "sum"], True),
        ([1, None], False),  # worker 0 alone has it
        ([1, 1, None], True),
        ([0, 1, 0, 1], False),
        ([["0.1"], ["0.5"]], True),
    ],
)
def test_values_of_ones_own(values: list[Any], wrong: bool) -> None:
    assert differ(values) == wrong


def test_workers_of_other_versions_of_python() -> None:
    """Their instructions differ, and names are what they have in common."""
    code = compile("lambda x: x + 1", "here", "eval").co_consts[0]
    assert isinstance(code, types.CodeType)
    other = code.replace(co_code=bytes(reversed(code.co_code)), co_consts=(None,))
    one, another = (types.FunctionType(c, {}) for c in (code, other))
    assert code_digest(one) != code_digest(another)
    words = []
    for function, unlike in ((one, True), (another, True), (one, False)):
        job: Any = types.SimpleNamespace(unlike=unlike)
        words.append(FunctionsOfAll(job).word(function, None))
    assert words[0] == words[1] != words[2]
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    assert version in hardware(torch.device("cpu"))


def test_the_function_that_differs_is_named() -> None:
    def of(criterion: Any, inner: Any) -> Any:
        def loss(x: Any, scale: Any = inner) -> Any:
            return criterion(scale(x))

        return loss

    one = dict(code_parts(of(nn.L1Loss(), min_of)))
    other = dict(code_parts(of(nn.MSELoss(), max_of)))
    assert one.keys() == other.keys()
    differing = [path for path in one if one[path] != other[path]]
    assert differing == [" > scale", " > criterion"]
    assert "MSELoss" in other[" > criterion"]
    assert "max_of" in other[" > scale"]
