"""Shrinkage: a mean of the arrived and of history, weighted by the arrived's noise.

This is the positive-part rule of W. James, C. Stein, "Estimation with Quadratic Loss",
1961, which estimates N. Wiener's optimal gain from the data.
"""

from __future__ import annotations

import numpy as np

from codedgrad.lab.decoders.base import Decoder
from codedgrad.lab.decoders.gram import SPAN, Array, Problem


class Shrink(Decoder):
    """g^ = R + rho (b A + (1 - b) average).

    The gain is b = max(0, 1 - (s^2 / L) / |A - average|^2), with the noise of a shard
    taken from the L arrived ones, s^2 = (1 - 1/L) mean_j |rows_j - A_without_j|^2.
    """

    name = "shrink"

    def coefficients(self, problem: Problem) -> Array:
        """Return c [T, P]; where only one shard has arrived this is rescaling."""
        c = np.zeros((len(problem.gram), len(SPAN)))
        n = problem.left_count
        if n < 2:
            c[:, 0] = 1.0
            return c
        apart = (
            problem.left_norm
            - 2.0 * problem.left_target[:, 0]
            + problem.left_gram[:, 0, 0]
        )
        noise = np.maximum(apart, 0.0) * (1.0 - 1.0 / n) / n
        g = problem.gram
        moved = g[:, 0, 0] - 2.0 * g[:, 0, 2] + g[:, 2, 2]
        b = np.maximum(0.0, 1.0 - noise / np.maximum(moved, 1e-300))
        c[:, 0], c[:, 2] = b, 1.0 - b
        return c
