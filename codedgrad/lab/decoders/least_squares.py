"""Online least squares per tile, the strong linear baseline."""

from __future__ import annotations

from codedgrad.lab.decoders.base import Decoder
from codedgrad.lab.decoders.candidates import LeastSquares
from codedgrad.lab.decoders.gram import Array, Label, Problem


class OnlineLeastSquares(Decoder):
    """c = argmin sum over past labels of 0.98^age |x - V c|^2 / s, per tile.

    Until the first label it rescales.
    """

    name = "online_ls"

    def __init__(self, tiles: int) -> None:
        """Begin without labels."""
        super().__init__(tiles)
        self._squares = LeastSquares(tiles)

    def coefficients(self, problem: Problem) -> Array:
        """Return c [T, P]."""
        return self._squares.online(problem)

    def learn(self, problem: Problem, c: Array, label: Label) -> None:
        """Learn one more label."""
        super().learn(problem, c, label)
        self._squares.learn(problem, label)
