"""The interface of all decoders, and how an estimate is formed from coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders.candidates import FIXED
from codedgrad.lab.decoders.gram import problem, vectors
from codedgrad.lab.decoders.predictor import Predictor

if TYPE_CHECKING:
    from codedgrad.lab.decoders.arrivals import Arrivals, Memory, Vector
    from codedgrad.lab.decoders.gram import Array, Label, Problem


class Estimate(NamedTuple):
    """A gradient and how wrong it is expected to be.

    Attributes:
        gradient: [D], of the batch's mean.
        predicted: expected |g^ - g|^2 / |g|^2.
        bound: the same, exceeded in about 3 of 100 steps.
    """

    gradient: Vector
    predicted: float
    bound: float


class Decoder(ABC):
    """Estimates the batch's mean gradient from what has arrived.

    With rho the missing share, c the decoder's choice and v the span (gram.SPAN),

        g^ = R + rho sum_i c_i v_i,   tile by tile.

    Where the arrivals cover (rho = 0) g^ is R, the predicted error 0.
    """

    name: str

    def __init__(self, tiles: int) -> None:
        """For vectors cut into `tiles` tiles."""
        self.tiles = tiles
        self.predictor = Predictor()

    @abstractmethod
    def coefficients(self, problem: Problem) -> Array:
        """C [T, P] for a step, from its inner products and what was learned so far."""

    def mixing(self) -> tuple[float, float]:
        """(t, s) of the predictor for the last coefficients."""
        return 0.5, 0.0

    def estimate(self, arrivals: Arrivals, memory: Memory) -> Estimate:
        """Decode one step. Changes nothing that is remembered.

        Args:
            arrivals: of the step.
            memory: before the step; its `bounds` are the tiles.

        Raises:
            ConfigError: arrivals, memory and decoder are not of the same model.
        """
        shape = (len(memory.seen), int(memory.bounds[-1]))
        if arrivals.rows.shape != shape or len(memory.bounds) - 1 != self.tiles:
            raise ConfigError(
                f"arrivals are {arrivals.rows.shape}, memory is {shape} in "
                f"{len(memory.bounds) - 1} tiles, the decoder has {self.tiles} tiles: "
                "after a change of the model start with a new memory and decoder"
            )
        total = arrivals.total()
        if arrivals.missing <= 0.0:
            return Estimate(total, 0.0, 0.0)
        inner, weights = problem(arrivals, memory)
        c = self.coefficients(inner)
        predicted, bound = self.predictor.predict(inner, c, *self.mixing())
        return Estimate(
            apply(total, vectors(arrivals, memory), weights, c, inner.rho, memory),
            predicted,
            bound,
        )

    def learn(self, problem: Problem, c: Array, label: Label) -> None:
        """A label of an earlier step in which this decoder had chosen `c`."""
        self.predictor.learn(problem, c, label, *self.mixing())


def apply(
    total: Vector, u: Array, weights: Array, c: Array, rho: float, memory: Memory
) -> Vector:
    """R + rho V c [D], tile by tile; slow reference of the engine's weighted sum.

    Args:
        total: R [D].
        u: vectors [B, D].
        weights: [B, P], the span over them.
        c: [T, P].
        rho: missing share.
        memory: its bounds [T + 1] are the tiles.
    """
    out = np.array(total, np.float64)
    for i, (a, b) in enumerate(memory.tiles()):
        out[a:b] += rho * (weights @ c[i]) @ u[:, a:b]
    return out


class FixedDecoder(Decoder):
    """The same coefficients always; subclasses name them."""

    def coefficients(self, problem: Problem) -> Array:
        """C [T, P], one row for all tiles."""
        return np.broadcast_to(
            FIXED[self.name], (len(problem.gram), len(FIXED["zero"]))
        )
