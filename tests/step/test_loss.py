"""What a loss function may return."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from codedgrad import ConfigError
from codedgrad.step.loss import loss_of

PLACE = "step 3, shard 1"
LOSS = torch.ones((), requires_grad=True) * 2.0


def test_a_loss_alone() -> None:
    value, weight, metrics = loss_of(LOSS, PLACE)
    assert metrics is None
    assert value is LOSS
    assert weight is None


@pytest.mark.parametrize(
    "weight",
    [7, 7.0, np.int64(7), np.float32(7), torch.tensor(7), torch.tensor([7.0]), "7"],
)
def test_a_loss_and_a_weight(weight: Any) -> None:
    value, number, _ = loss_of((LOSS, weight), PLACE)
    assert value is LOSS
    assert number == 7.0


def test_metrics_come_last() -> None:
    found = {"right": torch.tensor(3), "accuracy": torch.tensor([0.5]), "n": True}
    kinds = (("accuracy", "mean"), ("n", "count"), ("right", "count"))
    for returned, weight in (((LOSS, found), None), ((LOSS, 2, found), 2.0)):
        value, number, metrics = loss_of(returned, PLACE)
        assert value is LOSS
        assert number == weight
        assert metrics is not None
        assert metrics.names == kinds


def test_with_weight_zero_the_loss_is_not_looked_at() -> None:
    assert loss_of((torch.tensor(math.nan), 0), PLACE).weight == 0.0


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (3.0, "one number as a tensor"),
        (torch.ones(2, requires_grad=True), "one number as a tensor"),
        ((LOSS, 1.0, 2.0), "one number as a tensor"),
        (torch.tensor(1.0), "no gradient"),
        ((torch.tensor(1.0), 2.0), "no gradient"),
        ((LOSS, -1.0), "is -1.0"),
        ((LOSS, math.nan), "is nan"),
        ((LOSS, math.inf), "is inf"),
        ((LOSS, torch.tensor([1.0, 2.0])), "is a Tensor"),
        ((LOSS, {"accuracy": 1.0}, 1.0), "one number as a tensor"),
        ((LOSS, 1.0, {"a": 1.0}, 1.0), "one number as a tensor"),
        ((LOSS, {"accuracy": torch.ones(2)}), r"'accuracy' .* has the shape \(2,\)"),
        ((LOSS, {"accuracy": "high"}), "'accuracy' .* is a str"),
        ((LOSS, 1.0, {"accuracy": None}), "'accuracy' .* is a NoneType"),
        ((LOSS, {"accuracy": 1j}), "'accuracy' .* is a complex"),
        ((LOSS, {"z": torch.ones((), dtype=torch.cfloat)}), "'z' .* is a Tensor"),
        ((LOSS, {7: 1.0}), "is called 7"),
        ((LOSS, {str(i): 1.0 for i in range(17)}), "17 metrics .* room for 16"),
        ((LOSS, None), "is a NoneType"),
        ((LOSS, LOSS), "has a gradient"),
    ],
)
def test_what_is_refused(returned: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        loss_of(returned, PLACE)
    assert PLACE in str(error.value)
