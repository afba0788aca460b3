"""Exits: what a model's unfinished pass already answers.

A worker whose pass is slow rather than stalled has finished some stages. A linear head
on their features answers for nothing, with a doubt and a gate of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from codedgrad.inference.learned import gate
from codedgrad.inference.learned.doubt import Doubt
from codedgrad.inference.learned.trunk import head

if TYPE_CHECKING:
    from typing_extensions import Self

    from codedgrad.inference.learned.outputs import Outputs


@dataclass
class Exit:
    """A head on the features of one stage.

    Attributes:
        net: the head.
        shape: of one query's features.
        doubt: of its answers.
        gate: up to which doubt they are trusted.
    """

    net: nn.Sequential
    shape: tuple[int, ...]
    doubt: Doubt
    gate: gate.Gate

    def answer(self, features: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Returns values, as rows, and their doubts."""
        rows = self.net(features)
        return rows[:, :-1], self.doubt(outputs.signs(rows))

    def state(self) -> dict[str, Any]:
        """Returns what `restored` takes."""
        return {
            "net": self.net.state_dict(),
            "shape": list(self.shape),
            "doubt": self.doubt.state(),
            "gate": self.gate.state(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any], outputs: Outputs) -> Self:
        """Returns the exit that `state` describes."""
        net = head(state["shape"], outputs.width + 1)
        net.load_state_dict(state["net"])
        return cls(
            net.eval().requires_grad_(False),
            tuple(state["shape"]),
            Doubt(**state["doubt"]),
            gate.restored(state["gate"]),
        )
