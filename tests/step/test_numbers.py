"""Numbers of a step: metrics wherever they lie, gradients that do not fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from codedgrad.errors import NonFiniteError
from codedgrad.job.settings import ExchangeSettings
from codedgrad.row.payload import Payload
from codedgrad.step.finite import NonFinite
from codedgrad.step.metrics import Metrics


class Elsewhere(torch.Tensor):
    """A tensor of another device, of which a number can be read."""

    def __float__(self) -> float:
        return 2.0


def test_metrics_on_several_devices_are_all_read() -> None:
    layout = SimpleNamespace(on_host=False, device=torch.device("cpu"))
    payload: Any = SimpleNamespace(layout=layout)
    far = torch.empty(1, device="meta").as_subclass(Elsewhere)
    values = [torch.tensor(1.5), far, 3, torch.tensor([4]), 5.0]
    found = Metrics(payload, finite=True)._numbers(values)
    assert found == [1.5, 2.0, 3.0, 4.0, 5.0]
    assert Metrics(payload, finite=True)._numbers([far, 3]) == [2.0, 3.0]


@pytest.mark.parametrize(("weight", "fits"), [(0.75, True), (0.5, False)])
def test_a_gradient_beyond_float16_after_the_division_is_refused(
    weight: float, fits: bool
) -> None:
    """The sum fits, and what it becomes by the division does not."""
    parameter = nn.Parameter(torch.zeros(4).half())
    payload = Payload([("p", parameter)], settings=ExchangeSettings(wire="float16"))
    total = torch.zeros(payload.layout.count)
    total[1] = 40000.0
    tail = total[payload.layout.gradients :].numpy()
    tail[payload.layout.weight_place] = weight
    sums = NonFinite(payload, lambda *_: "", refuse=True, refuse_sum=True, waits=False)
    if fits:
        sums.check_sum(total, tail, 0)
    else:
        with pytest.raises(NonFiniteError, match="beyond 65504"):
            sums.check_sum(total, tail, 0)
