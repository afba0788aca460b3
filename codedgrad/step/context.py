"""What every stage of one step needs to know, in one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.data import StepShards
    from codedgrad.exchange.base import Exchange
    from codedgrad.step.state import StepState


@dataclass(frozen=True, slots=True)
class StepContext:
    """One step, as its stages see it.

    Attributes:
        exchange: where rows go and the decoded sum comes from.
        loss_fn: called with the tensors of a pass; see `codedgrad.step.loss`.
        shards: the step's data, by micro-batch.
        state: what has happened so far.
    """

    exchange: Exchange
    loss_fn: Callable[..., Any]
    shards: StepShards
    state: StepState

    @property
    def step(self) -> int:
        """The step's number."""
        return self.state.step
