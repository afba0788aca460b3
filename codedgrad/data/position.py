"""How far an epoch has come, so that another run can go on from there.

A position is told in samples that were used, and not in what a worker did, so any
number of workers may go on, also with another batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from codedgrad.errors import ConfigError


@dataclass
class Position:
    """A place in an epoch.

    Attributes:
        epoch: the epoch.
        steps: the steps of it that were used.
        samples: the samples of it that were used.
        parts: with a fixed partition, which steps they were of: the samples of one
            shard in a step, the number of shards, and how many such steps.
    """

    epoch: int = 0
    steps: int = 0
    samples: int = 0
    parts: list[list[int]] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether the epoch has begun."""
        return self.steps > 0

    def state(self, same: dict[str, Any]) -> dict[str, Any]:
        """Return it for a checkpoint.

        Args:
            same: what must be the same where it is loaded, by name.
        """
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "samples": self.samples,
            "parts": [list(part) for part in self.parts],
            "same": dict(same),
        }

    @classmethod
    def of(cls, state: dict[str, Any], same: dict[str, Any]) -> Position:
        """Return the position of a checkpoint.

        Args:
            state: what `state` gave.
            same: what must be as it was, by name.

        Raises:
            ConfigError: it is not the same, or `state` is something else.
        """
        try:
            before = dict(state["same"])
            position = cls(
                int(state["epoch"]),
                int(state["steps"]),
                int(state["samples"]),
                [[int(n) for n in part] for part in state["parts"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"this is not what the state_dict() of a sampler gave "
                f"({type(error).__name__}: {error}); load the sampler's own"
            ) from None
        for name, value in same.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"the checkpoint's sampler had {name} = {before.get(name)!r}, and "
                    f"this one has {value!r}: the rest of epoch {position.epoch} would "
                    f"not be the samples that are left. Use the same, or begin the "
                    f"next epoch without loading the sampler"
                )
        return position
