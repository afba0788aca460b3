"""Decoding weights of a linear code, from a small system for the rows that are missing.

Least squares on the arrived rows of B [n, k] costs O(n^2 k) per arrival set. But every
a with a^T B = b, for b in B's row space, is a = P b + N z, where P = pinv(B)^T and
N [n, n - r], an orthonormal basis of B's left null space (r is the rank), depend on the
code alone. For each arrival set it only remains to make a vanish on the m missing rows,
N_M z = -(P b)_M, which are m equations for n - r unknowns. For the cyclic code n - r is
s, the number of stragglers that it tolerates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RANK = 1e-10  # singular values below this share of the largest are zero, as in `lstsq`


class Dual:
    """The part of decoding that depends on B alone; it costs O(n^2 k) once."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        """Factor B, float64 [n, k]."""
        u, singular, vt = np.linalg.svd(matrix, full_matrices=True)
        rank = int((singular > _RANK * singular[0]).sum())
        self.matrix = matrix
        self.weights = u[:, :rank] / singular[:rank] @ vt[:rank]  # P [n, k]
        self.null = np.ascontiguousarray(u[:, rank:])  # N [n, n - r]
        # The all-ones vector projected on the row space is the best sum there is.
        self.best = vt[:rank].T @ vt[:rank].sum(axis=1)

    def decode(
        self, arrived: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the a of least norm among those of least |1 - a^T B|, and 1 - a^T B.

        Return None where rounding spoils it; least squares must find it then.
        """
        missing = np.flatnonzero(~arrived)
        null = self.null[missing]  # N_M [m, n - r]
        u, singular, vt = np.linalg.svd(null, full_matrices=True)
        kept = int((singular > 1e-12).sum())  # N is orthonormal
        inverse = vt[:kept].T / singular[:kept] @ u[:, :kept].T
        # With more rows missing than unknowns, only b with C b = 0 can be reached.
        lost = u[:, kept:].T @ self.weights[missing]  # C [m - kept, k]
        target = self.best
        if len(lost):
            target = target - np.linalg.pinv(lost, rcond=_RANK) @ (lost @ target)
        a = np.zeros(len(arrived))
        # The later iterations remove the rounding errors of the first.
        for _ in range(3):
            change = self.weights @ (target - a @ self.matrix)
            change -= self.null @ (inverse @ change[missing])
            a += change
            a[missing] = 0.0
        error = float(np.abs(target - a @ self.matrix).max(initial=0.0))
        # Whether the arrivals cover is decided at 1e-8; a deficit may be less precise.
        if not error < (1e-6 if len(lost) else 5e-9):
            return None
        return a, 1.0 - a @ self.matrix
