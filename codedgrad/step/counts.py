"""What the drop-in counts, and how it travels with the optimizer's state.

The random numbers of a forward follow from the number of the optimizer's step and of
the forward in it. A checkpoint has to hold both, so that a resumed run draws the same.
They are an entry of the first parameter group in `optimizer.state_dict()`, like the
`initial_lr` of torch's schedulers, since that is where an optimizer keeps what it does
not know: a checkpoint can be loaded into an optimizer before it is made distributed,
and into one that never is. What a decoder of estimates has learned lies beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

_ENTRY, _DECODER = "codedgrad", "decoder"


class Memory(Protocol):
    """Something beside the counts that travels with the optimizer's state."""

    def learned(self) -> dict[str, Any]:
        """Returns it; {}: there is nothing."""

    def learn(self, saved: dict[str, Any]) -> None:
        """Goes on from what `learned` has returned."""


@dataclass
class Counts:
    """How far the run is on this worker.

    Attributes:
        steps: calls of `optimizer.step()` that have ended.
        forwards: forward passes for training since then.
    """

    steps: int = 0
    forwards: int = 0

    def attach(self, optimizer: torch.optim.Optimizer, memory: Memory) -> list[Any]:
        """Keeps these counts in the optimizer's state, and takes over what is in it.

        Args:
            optimizer: whose state.
            memory: what it has learned is kept with them.

        Returns:
            Handles, to end that.
        """
        self._memory = memory
        self._take(optimizer)
        return [
            optimizer.register_state_dict_post_hook(self._add),
            optimizer.register_load_state_dict_post_hook(self._take),
        ]

    def _add(self, _optimizer: Any, state: dict[str, Any]) -> None:
        if state["param_groups"]:
            entry: dict[str, Any] = asdict(self)
            if learned := self._memory.learned():
                entry[_DECODER] = learned
            state["param_groups"][0][_ENTRY] = entry

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            entry = group.pop(_ENTRY, None)
            if isinstance(entry, dict):
                self.steps = int(entry.get("steps", 0))
                self.forwards = int(entry.get("forwards", 0))
                self._memory.learn(entry.get(_DECODER, {}))
