"""What the drop-in counts, and how it travels with the optimizer's state.

The random numbers of a forward follow from the number of the optimizer's step and of
the forward in it. A checkpoint has to hold both, so that a resumed run draws the same.
They are an entry of the first parameter group in `optimizer.state_dict()`, like the
`initial_lr` of torch's schedulers, since that is where an optimizer keeps what it does
not know: a checkpoint can be loaded into an optimizer before it is made distributed,
and into one that never is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

_ENTRY = "codedgrad"


@dataclass
class Counts:
    """How far the run is on this worker.

    Attributes:
        steps: calls of `optimizer.step()` that have ended.
        forwards: forward passes for training since then.
    """

    steps: int = 0
    forwards: int = 0

    def attach(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        """Keeps these counts in the optimizer's state, and takes over what is in it.

        Returns:
            Handles, to end that.
        """
        self._take(optimizer)
        return [
            optimizer.register_state_dict_post_hook(self._add),
            optimizer.register_load_state_dict_post_hook(self._take),
        ]

    def _add(self, _optimizer: Any, state: dict[str, Any]) -> None:
        if state["param_groups"]:
            state["param_groups"][0][_ENTRY] = asdict(self)

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            entry = group.pop(_ENTRY, None)
            if isinstance(entry, dict):
                self.steps = int(entry.get("steps", 0))
                self.forwards = int(entry.get("forwards", 0))
