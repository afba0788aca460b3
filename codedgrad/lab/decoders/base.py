"""The interface of all decoders, and how they form an estimate from coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders.gram import problem, vectors
from codedgrad.lab.decoders.predictor import Predictor

if TYPE_CHECKING:
    from codedgrad.lab.decoders.arrivals import Arrivals, Memory, Vector
    from codedgrad.lab.decoders.gram import Array, Label, Problem


class Estimate(NamedTuple):
    """A gradient and how wrong it is expected to be.

    Attributes:
        gradient: g^ [D], the estimate of the batch's mean gradient.
        predicted: the expected |g^ - g|^2 / |g|^2.
        bound: a bound on it that is exceeded in about 3 of 100 steps.
    """

    gradient: Vector
    predicted: float
    bound: float


class Decoder(ABC):
    """Estimates the batch's mean gradient from what has arrived.

    With rho the missing share, c the decoder's choice and v the span (gram.SPAN), the
    estimate is, tile by tile,

        g^ = R + rho sum_i c_i v_i.

    Where the arrivals cover, rho is 0, g^ is R and the predicted error is 0.
    """

    name: str

    def __init__(self, tiles: int) -> None:
        """Make a decoder for vectors that are cut into `tiles` tiles."""
        self.tiles = tiles
        self.predictor = Predictor()

    @abstractmethod
    def coefficients(self, problem: Problem) -> Array:
        """Choose c [T, P] from a step's inner products and what was learned so far."""

    def mixing(self) -> tuple[float, float]:
        """Return the predictor's (t, s) for the last coefficients."""
        return 0.5, 0.0

    def estimate(self, arrivals: Arrivals, memory: Memory) -> Estimate:
        """Decode one step; the memory stays as it is.

        Args:
            arrivals: the step's arrivals.
            memory: the memory before the step; its `bounds` are the tiles.

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
        if arrivals.missing <= 0.0:
            return Estimate(arrivals.total(), 0.0, 0.0)
        inner, weights = problem(arrivals, memory)
        c = self.coefficients(inner)
        predicted, bound = self.predictor.predict(inner, c, *self.mixing())
        gradient = apply(arrivals, memory, weights, c, rho=inner.rho)
        return Estimate(gradient, predicted, bound)

    def learn(self, problem: Problem, c: Array, label: Label) -> None:
        """Learn the label of an earlier step in which this decoder had chosen `c`."""
        self.predictor.learn(problem, c, label, *self.mixing())


def apply(
    arrivals: Arrivals, memory: Memory, weights: Array, c: Array, *, rho: float
) -> Vector:
    """Return R + rho V c [D], tile by tile.

    This is the slow reference of the engine's weighted sum.

    Args:
        arrivals: the step's arrivals, with R [D] their total.
        memory: the memory before the step; its bounds [T + 1] are the tiles.
        weights: [B, P], the span as combinations of `gram.vectors` [B, D].
        c: [T, P], the coefficients.
        rho: the missing share.
    """
    out = np.array(arrivals.total(), np.float64)
    u = vectors(arrivals, memory)
    for i, (a, b) in enumerate(memory.tiles()):
        out[a:b] += rho * (weights @ c[i]) @ u[:, a:b]
    return out


class FixedDecoder(Decoder):
    """A decoder whose coefficients are always the same.

    Attributes:
        choice: [P], the coefficients; subclasses set them.
    """

    choice: Array

    def coefficients(self, problem: Problem) -> Array:
        """Return c [T, P], the same row for all tiles."""
        return np.broadcast_to(self.choice, (len(problem.gram), len(self.choice)))
