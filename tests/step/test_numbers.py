"""Metrics are read from wherever their tensors are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

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
