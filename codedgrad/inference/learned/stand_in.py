"""The stand-in: a small learned copy of a model that knows when it may be believed.

It is the redundant computation of a nonlinear code whose encoder is the identity: the
model's own first stage, frozen, and a narrow trunk behind it, distilled on inputs
without labels. Unlike a parity it needs nobody else's answer. `distil` makes one;
docs/stand-in.md tells the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.learned import gate
from codedgrad.inference.learned.doubt import Doubt
from codedgrad.inference.learned.exits import Exit
from codedgrad.inference.learned.outputs import Outputs
from codedgrad.inference.learned.stages import frozen, stages_of
from codedgrad.inference.learned.subject import weights_digest
from codedgrad.inference.learned.trunk import trunk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

_FORMAT = 2


class StandIn:
    """A distilled model: `values, doubts = stand_in(inputs)`.

    `values` have the shape of the model's answers. A doubt is the calibrated
    probability that the model's largest logit is another one, or, of numbers, the
    expected squared error over the variance of the model's answers. An answer whose
    doubt is at most `threshold` may be taken for the model's.

    Attributes:
        outputs: what the model answers.
        shape: of one query.
        width: of the trunk.
        exits: by the number of stages before it, what an unfinished pass answers.
        cost: measured seconds over the model's, doubts included.
        notes: what its user should know.
        stages: the model's first stages, frozen.
        trunk: what answers from their features.
        doubt: of its answers.
        gate: up to which doubt they are trusted.
        digest: of the weights of the model that it imitates.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        """Made by `distil` and `load`."""
        self.outputs: Outputs = parts["outputs"]
        self.shape: tuple[int, ...] = tuple(parts["shape"])
        self.width: int = parts["width"]
        self.exits: dict[int, Exit] = parts["exits"]
        self.cost: float = parts["cost"]
        self.notes: tuple[str, ...] = tuple(parts["notes"])
        self.stages: nn.Sequential = parts["stages"]
        self.trunk: nn.Sequential = parts["trunk"]
        self._features: tuple[int, ...] = tuple(parts["features"])
        self.doubt: Doubt = parts["doubt"]
        self.gate: gate.Gate = parts["gate"]
        self.digest: str = parts["digest"]

    @property
    def shared(self) -> int:
        """How many of the model's stages it begins with."""
        return len(self.stages)

    @property
    def threshold(self) -> float:
        """The largest doubt that is trusted; -1 where nothing is: exact only."""
        return self.gate.threshold

    @property
    def alarms(self) -> int:
        """How often late exact answers have shown more error than was allowed."""
        return self.gate.alarms

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Answer queries.

        Args:
            inputs: one query a row.

        Returns:
            Values as the model would give them, and one doubt in [0, 1] a query.

        Raises:
            ConfigError: the queries have another shape than the samples had.
        """
        self.check(inputs)
        with torch.no_grad():
            rows, signs = self.rows_and_signs(inputs)
            return self.outputs.shaped(rows), self.doubt(signs)

    def rows_and_signs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns its answers as rows, and what their doubts are computed from."""
        rows = self.trunk(self.stages(inputs))
        return rows[:, :-1], self.outputs.signs(rows)

    def exit(self, depth: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Answer from an unfinished pass of the model.

        Args:
            depth: how many stages it has finished.
            features: what the last of them gave.

        Returns:
            Values and doubts; trust those of at most `exits[depth].gate.threshold`.

        Raises:
            ConfigError: there is no exit at this depth.
        """
        if depth not in self.exits:
            raise ConfigError(
                f"no exit after {depth} stages, there are exits after "
                f"{sorted(self.exits) or 'none'}"
            )
        with torch.no_grad():
            rows, doubts = self.exits[depth].answer(features, self.outputs)
            return self.outputs.shaped(rows), doubts

    def agreed(self, values: Tensor, exact: Tensor) -> Tensor:
        """Returns how far answers agree with the model's, as `observe` takes it.

        Args:
            values: the stand-in's.
            exact: the model's.

        Returns:
            1 or 0 for logits; for numbers 1 minus the squared error over the variance.
        """
        rows, wanted = self.outputs.rows(values), self.outputs.rows(exact)
        return 1 - self.outputs.losses(rows, wanted)

    def observe(self, doubts: Any, agreed: Any) -> None:
        """Learn from late exact answers which doubt may be trusted.

        Give it every exact answer that comes, also those to doubtful queries; if only
        some come, they should not depend on whether the stand-in was right.

        Args:
            doubts: those of the stand-in's answers.
            agreed: whether each was the model's: true or false, or see `agreed`.

        Raises:
            ConfigError: they are unequal in number, or outside of [0, 1].
        """
        found, right = _numbers(doubts), _numbers(agreed)
        if len(found) != len(right):
            raise ConfigError(
                f"observe takes one doubt for each answer, got {len(found)} doubts "
                f"and {len(right)} answers"
            )
        for name, numbers in (("doubts", found), ("agreed", right)):
            if not bool(((numbers >= 0) & (numbers <= 1)).all()):
                raise ConfigError(f"{name} must be between 0 and 1, got {numbers}")
        self.gate.observe(found, 1 - right)

    def to(self, device: torch.device | str) -> Self:
        """Move it to a device, and return it."""
        place = torch.device(device)
        self.stages.to(place)
        self.trunk.to(place)
        self.doubt = self.doubt.to(place)
        for one in self.exits.values():
            one.net.to(place)
            one.doubt = one.doubt.to(place)
        return self

    def save(self, path: str | Path) -> None:
        """Write it to a file of tensors and numbers, without code.

        Args:
            path: of the file.
        """
        torch.save(
            {
                "format": _FORMAT,
                "outputs": vars(self.outputs),
                "shape": list(self.shape),
                "width": self.width,
                "cost": self.cost,
                "notes": list(self.notes),
                "features": list(self._features),
                "digest": self.digest,
                "shared": self.shared,
                "stages": self.stages.state_dict(),
                "trunk": self.trunk.state_dict(),
                "doubt": self.doubt.state(),
                "gate": self.gate.state(),
                "exits": {d: one.state() for d, one in self.exits.items()},
            },
            path,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        stages: Sequence[nn.Module] | None = None,
    ) -> Self:
        """Read one from a file; nothing in the file is executed.

        Args:
            path: of the file.
            model: the model that it was distilled from.
            stages: as for `distil`.

        Raises:
            ConfigError: the model's weights are others, or the file is none of these.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ConfigError(f"{path} is no stand-in of this version; distil it anew")
        if state["digest"] != weights_digest(model):
            raise ConfigError(
                f"the model's weights are not those that the stand-in in {path} was "
                f"distilled from; load those, or distil it anew"
            )
        copied = frozen(stages_of(model, stages)[: state["shared"]])
        copied.load_state_dict(state["stages"])
        outputs = Outputs(**state["outputs"])
        net = trunk(state["features"], state["width"], outputs.width + 1, norm=False)
        net.load_state_dict(state["trunk"])
        state["outputs"], state["stages"] = outputs, copied
        state["trunk"] = net.eval().requires_grad_(False)
        state["doubt"] = Doubt(**state["doubt"])
        state["gate"] = gate.restored(state["gate"])
        state["exits"] = {
            depth: Exit.restored(one, outputs) for depth, one in state["exits"].items()
        }
        first = next(model.parameters(), None)
        return cls(state).to("cpu" if first is None else first.device)

    def check(self, inputs: Any) -> None:
        """Refuses queries that it was not distilled on.

        Raises:
            ConfigError: they have another shape.
        """
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != self.shape:
            got = (
                tuple(inputs.shape)
                if isinstance(inputs, Tensor)
                else type(inputs).__qualname__
            )
            raise ConfigError(
                f"this stand-in takes queries of shape {self.shape}, stacked along a "
                f"first dimension; got {got}"
            )

    def __repr__(self) -> str:
        trust = "exact only" if self.threshold < 0 else f"up to {self.threshold:.4f}"
        return (
            f"StandIn({self.outputs.kind}, {self.shared} stages of the model, width "
            f"{self.width}, cost {self.cost:.3f}, exits after {sorted(self.exits)}, "
            f"trusted: {trust})"
        )


def _numbers(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return np.atleast_1d(np.asarray(values, dtype=float)).ravel()
