"""What a function may return, and that sums come back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import codedgrad
from codedgrad.errors import ConfigError
from codedgrad.inference import sums
from codedgrad.inference.row import Format, Marks, digest40, lines_for

LARGE = 2**62 + 12345


def total(*results: dict[str, Any]) -> dict[str, Any]:
    """Add results up by way of rows, each result as one part of eight."""
    found = [sums.read(result, i) for i, result in enumerate(results)]
    schema = found[0][0]
    lines = lines_for(schema, 8)
    form = Format(lines, 8, 8)
    marks = Marks(digest40("w"), 12345).with_metrics(sums.text_of(schema))
    rows = np.zeros(lines * 16)
    for part, (other, values) in enumerate(found):
        sums.check_same(schema, other, part)
        payload = form.write(schema, values, part=part, worker=part % 3)
        leaves = 8 - part if part == len(found) - 1 else 1
        with np.errstate(invalid="ignore"):
            rows += form.marked(payload, marks, leaves)
    decoded = form.read(rows)
    assert decoded.fits(marks) == (True, True)
    assert decoded.alike()
    assert decoded.need == 0
    assert decoded.fits(marks._replace(model=1)) == (False, True)
    assert decoded.fits(marks._replace(data=1)) == (True, False)
    assert sums.schema_of(decoded.text()) == schema
    if any(not entry.summed for entry in schema):
        assert decoded.makers(schema)[: len(found)] == [
            i % 3 for i in range(len(found))
        ]
    return sums.unflatten(schema, decoded.sums(schema))


def test_integers_are_exact() -> None:
    got = total(
        {"n": LARGE, "t": torch.tensor([LARGE, -1]), "b": True, "u": np.uint8(200)},
        {"n": -LARGE - 7, "t": torch.tensor([-3, -(2**63) + 1]), "b": False, "u": 100},
    )
    assert got["n"] == -7
    assert got["t"].tolist() == [LARGE - 3, -(2**63)]
    assert got["t"].dtype == torch.int64
    assert (got["b"], got["u"]) == (1, 300)
    # Numbers are Python's, beyond 2^63 too; tensors are int64, as torch adds them.
    assert total({"n": LARGE}, {"n": LARGE}, {"n": LARGE})["n"] == 3 * LARGE


def test_floats_nans_and_zeros() -> None:
    nan = float("nan")
    got = total(
        {"x": 0.1, "t": torch.tensor([1.0, nan, -0.0]), "h": torch.ones(2).bfloat16()},
        {"x": 0.2, "t": torch.tensor([2.0, 1.0, -0.0]), "h": torch.ones(2).bfloat16()},
    )
    assert got["x"] == 0.1 + 0.2
    assert got["t"].dtype == torch.float64
    assert str(got["t"].tolist()) == "[3.0, nan, 0.0]"
    assert got["h"].tolist() == [2.0, 2.0]
    assert str(total({"x": float("inf")}, {"x": float("-inf")})["x"]) == "nan"


def test_shapes_and_results_by_sample() -> None:
    each = codedgrad.Each(torch.arange(3))
    got = total(*({"m": torch.eye(3).long() * i, "e": each} for i in range(4)))
    assert torch.equal(got["m"], torch.eye(3).long() * 6)
    entry = sums.read({"e": each}, 0)[0][0]
    pieces = [
        sums.read({"e": codedgrad.Each(torch.arange(n))}, 0)[1][0] for n in (2, 0, 1)
    ]
    assert sums.joined(entry, pieces).tolist() == [0, 1, 0]
    listed = [
        sums.read({"e": codedgrad.Each(v)}, 0)[1][0] for v in (["a"], [], ["b", "c"])
    ]
    entry = sums.read({"e": codedgrad.Each([])}, 0)[0][0]
    assert sums.joined(entry, listed) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (3, "wanted a dictionary of sums"),
        ({}, "wanted a dictionary of sums"),
        ({1: 2}, "names of metrics are texts, got 1"),
        ({"a": "b"}, "'a' is a str, which cannot be summed"),
        ({"a": torch.ones(2) * 1j}, "'a' is a tensor of torch.complex64"),
        ({"a": codedgrad.Each(torch.ones(()))}, "takes a tensor with a dimension"),
    ],
)
def test_what_cannot_be_summed_is_named(result: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sums.read(result, 0)


def test_other_metrics_are_named() -> None:
    usual, _ = sums.read({"m": torch.ones(2, 2), "n": 1}, 0)
    for result, message in [
        (
            {"m": torch.ones(3, 3), "n": 1},
            r"'m' is float, of shape \(3, 3\) in batch 7",
        ),
        ({"m": torch.ones(2, 2)}, "'n' is missing in batch 7, and int, one number"),
        ({"m": torch.ones(2, 2), "n": 1.0}, "'n' is float, one number in batch 7"),
        ({"n": 1, "m": torch.ones(2, 2)}, "in the order"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sums.check_same(usual, sums.read(result, 7)[0], 7)
    with pytest.raises(ConfigError, match="beyond 2"):
        total({"n": 2**63})


def test_rows_that_disagree_fit_nobody() -> None:
    schema, values = sums.read({"n": 1}, 0)
    form = Format(4, 8, 8)
    model, data, other = map(digest40, "abc")
    ours, theirs = Marks(model, data), Marks(model, other)
    payload = form.write(schema, values, part=1, worker=0)
    mixed = form.read(form.marked(payload, ours, 7) + form.marked(payload, theirs, 1))
    assert not mixed.alike()
    even = form.read(form.marked(payload, ours, 4) + form.marked(payload, theirs, 4))
    assert not even.alike()  # a mean of two marks is none
    assert mixed.fits(ours) == (True, False)
    large = form.read(form.too_small(9, ours))
    assert large.need == 9
    assert large.fits(ours)[1] is False
    assert form.read(np.full(64, np.nan)).text() == ""
