"""The doubt of an answer: its expected loss, calibrated on answers that nobody fitted.

A logistic regression of the loss on a few signs of the answer gives a score. The score
is then calibrated by isotonic regression (Zadrozny and Elkan, 2002), linear between the
centres of its steps; one part in `_MIX` is the logistic estimate itself, so that
answers of the same step keep an order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing_extensions import Self

_MIX = 20.0
_RIDGE = 1e-3  # of the logistic regression
_STEPS = 60  # of its Newton-like solver


@dataclass
class Doubt:
    """Signs of an answer -> a number in [0, 1].

    Attributes:
        centre, scale: of the signs, so that they are near 0.
        weights, offset: of the logistic regression.
        scores, levels: the isotonic map; both rise.
    """

    centre: Tensor
    scale: Tensor
    weights: Tensor
    offset: Tensor
    scores: Tensor
    levels: Tensor

    @classmethod
    def fit(cls, signs: Tensor, losses: Tensor) -> Self:
        """Returns the doubt that fits these answers.

        Args:
            signs: one row an answer.
            losses: between 0 and 1.
        """
        x, y = signs.double().cpu(), losses.double().cpu()
        centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
        x = (x - centre) / scale
        weights, offset = _logistic(x, y)
        score = x @ weights + offset
        scores, levels = _isotonic(score.numpy(), y.numpy())
        parts = (
            centre,
            scale,
            weights,
            offset,
            *map(torch.from_numpy, (scores, levels)),
        )
        return cls(*(part.float() for part in parts))

    def __call__(self, signs: Tensor) -> Tensor:
        """Returns one doubt an answer; 1 where a sign is no number."""
        score = ((signs - self.centre) / self.scale) @ self.weights + self.offset
        place = torch.bucketize(score, self.scores).clamp(1, len(self.scores) - 1)
        low, high = self.scores[place - 1], self.scores[place]
        share = ((score - low) / (high - low)).clamp(0, 1)
        level = torch.lerp(self.levels[place - 1], self.levels[place], share)
        mixed = ((_MIX - 1) * level + score.sigmoid()) / _MIX
        return mixed.nan_to_num(nan=1.0)

    def to(self, device: torch.device) -> Self:
        """Returns the same doubt on a device."""
        return type(self)(*(t.to(device) for t in vars(self).values()))

    def state(self) -> dict[str, Any]:
        """Returns what `Doubt(**state)` takes."""
        return {name: t.cpu() for name, t in vars(self).items()}


def _logistic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        score = x @ weights[:-1] + weights[-1]
        found = F.binary_cross_entropy_with_logits(score, y)
        loss: Tensor = found + _RIDGE * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    found = weights.detach()
    return found[:-1], found[-1]


def _isotonic(score: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and levels of the least-squares rising step function.

    Neighbours that fall are pooled (Ayer et al., 1955) until none does. The scores
    returned are the steps' mean scores.
    """
    order = np.argsort(score, kind="stable")
    blocks: list[list[float]] = []  # sum of losses, of scores, count
    for s, y in zip(score[order], loss[order], strict=True):
        blocks.append([float(y), float(s), 1.0])
        while len(blocks) > 1 and (
            blocks[-2][0] * blocks[-1][2] >= blocks[-1][0] * blocks[-2][2]
        ):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    scores = np.array([b[1] / b[2] for b in blocks])
    levels = np.array([b[0] / b[2] for b in blocks])
    if len(blocks) == 1:
        scores, levels = scores + np.array([0.0, 1.0]), np.repeat(levels, 2)
    return scores, levels
