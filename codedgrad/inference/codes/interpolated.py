"""Codes that interpolate: Berrut's rational function, and smoothing splines.

Query i stands at alpha_i and worker j at beta_j on [-1, 1]. A function u through (or
near) the queries is sent as u(beta_j), the worker answers f(u(beta_j)), and a function
through (or near) the answers is read at alpha_i. Both are linear in the data, so
encoder and decoder are matrices; a decoder depends on who is there alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Set

import numpy as np
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.codes.interface import ESTIMATE, EXACT, NONE, QueryCode


class Interpolated(QueryCode):
    """A code of two matrices; workers run the model itself on mixtures.

    Attributes:
        encoder: [n, k].
        own: workers that are sent a query as it is, so that their answer is exact.
    """

    own: tuple[int, ...] = ()
    least = 2  # answers that can be decoded

    def __init__(self, model: nn.Module, k: int, n: int, encoder: np.ndarray) -> None:
        """Takes the model, the sizes and the encoder."""
        super().__init__(model, k, n)
        self.encoder = encoder
        self._decoders: dict[frozenset[int], np.ndarray] = {}

    @abstractmethod
    def matrix(self, there: list[int]) -> np.ndarray:
        """Return the decoder [k, answers] for the workers that are there, in order."""

    def encode(self, queries: Tensor) -> list[Tensor]:
        """Return the mixture of each worker."""
        self.check(queries)
        if not queries.is_floating_point():
            raise ConfigError(
                f"{self.name} mixes queries, which must be floats, got {queries.dtype}"
            )
        weights = torch.from_numpy(self.encoder).to(queries)
        mixed = torch.einsum("nk,gk...->ng...", weights, queries)
        return list(mixed.unbind(0))

    def decode(self, answers: Mapping[int, Tensor]) -> Tensor:
        """Return estimates of all answers."""
        if len(answers) < self.least:
            raise ConfigError(
                f"{self.name} decodes from {self.least} answers or more, got "
                f"{len(answers)}"
            )
        there = sorted(answers)
        key = frozenset(there)
        if key not in self._decoders:
            self._decoders[key] = self.matrix(there)
        stacked = torch.stack([answers[w] for w in there])
        weights = torch.from_numpy(self._decoders[key]).to(stacked)
        found = torch.einsum("kn,ng...->gk...", weights, stacked)
        for query, worker in enumerate(self.own):
            if worker in answers:
                found[:, query] = answers[worker]
        return found

    def availability(self, there: Set[int]) -> list[str]:
        """Return "estimate" for all, where enough is there; own queries are exact."""
        other = ESTIMATE if len(there) >= self.least else NONE
        if not self.own:
            return [other] * self.k
        return [EXACT if worker in there else other for worker in self.own]


def berrut(at: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Returns the matrix [at, nodes] of Berrut's rational interpolant (1988).

        r(z) = sum_i w_i(z) y_i / sum_i w_i(z),  w_i(z) = (-1)^i / (z - x_i)

    The nodes must be in order: signs that alternate along them keep it without poles.
    """
    signs = (-1.0) ** np.arange(len(nodes))
    gaps = at[:, None] - nodes[None, :]
    hit = np.abs(gaps) < 1e-12
    weights = signs / np.where(hit, 1.0, gaps)
    weights /= weights.sum(1, keepdims=True)
    return np.where(hit.any(1)[:, None], hit.astype(float), weights)


def chebyshev_first(count: int) -> np.ndarray:
    """Returns cos((2 i + 1) pi / (2 count)), where queries stand."""
    return np.cos((2 * np.arange(count) + 1) * np.pi / (2 * count))


def chebyshev_second(count: int) -> np.ndarray:
    """Returns cos(j pi / (count - 1)), where workers stand."""
    return np.cos(np.arange(count) * np.pi / max(count - 1, 1))


class Berrut(Interpolated):
    """Berrut's interpolant as encoder and decoder: BACC, and ApproxIFER for inference.

    Jahani-Nezhad and Maddah-Ali, arXiv 2009.08327, and Soleymani et al., arXiv
    2109.09868: alpha are Chebyshev points of the first kind, beta of the second. The
    signs alternate along the workers that are there, as the proof without poles needs.
    Nobody trains anything, and every answer is an estimate, always.
    """

    name = "Berrut"

    def __init__(self, model: nn.Module, k: int, n: int) -> None:
        """Takes the model, the queries of a group, and the workers."""
        self._alpha, self._beta = chebyshev_first(k), chebyshev_second(n)
        super().__init__(model, k, n, berrut(self._beta, self._alpha))

    def matrix(self, there: list[int]) -> np.ndarray:
        """Return the interpolant of the answers that are there, read at the queries."""
        return berrut(self._alpha, self._beta[there])


class SystematicBerrut(Interpolated):
    """The first k workers have a query each, others a mixture by Berrut's interpolant.

    Mixtures stand halfway between neighbouring queries, from the middle outwards. A
    missing answer is read off the interpolant of all others.
    """

    name = "Berrut, systematic"

    def __init__(self, model: nn.Module, k: int, n: int) -> None:
        """Takes the model, the queries of a group, and the workers."""
        if n - k > max(k - 1, 0):
            raise ConfigError(f"{self.name} has at most k - 1 mixtures, got {n - k}")
        alpha = chebyshev_first(k)
        halfway = (alpha[:-1] + alpha[1:]) / 2
        middle = np.argsort(np.abs(np.arange(k - 1) - (k - 2) / 2), kind="stable")
        self._places = np.concatenate([alpha, halfway[middle[: n - k]]])
        self._alpha = alpha
        self.own = tuple(range(k))
        super().__init__(model, k, n, berrut(self._places, alpha))

    def matrix(self, there: list[int]) -> np.ndarray:
        """Return the interpolant of the answers that are there, read at the queries."""
        places = self._places[there]
        order = np.argsort(-places)
        found = np.empty((self.k, len(there)))
        found[:, order] = berrut(self._alpha, places[order])
        return found


def spline(at: np.ndarray, nodes: np.ndarray, smooth: float) -> np.ndarray:
    """Returns the matrix [at, nodes] of the cubic smoothing spline.

        minimise  sum_i |y_i - u(x_i)|^2 / n + smooth * integral of |u''|^2

    By Reinsch's equations: with Q and R from the gaps between nodes, the values at the
    nodes are (I + n smooth Q R^-1 Q^T)^-1 y and the second derivatives R^-1 Q^T times
    them (Green and Silverman, 1994, section 2.3). Beyond the nodes it is straight.
    """
    order = np.argsort(nodes)
    x, count = nodes[order], len(nodes)
    values: np.ndarray = np.eye(count)
    bends: np.ndarray = np.zeros((count, count))
    if count > 2:
        gaps = np.diff(x)
        q = np.zeros((count, count - 2))
        r = np.zeros((count - 2, count - 2))
        for j in range(count - 2):
            q[j : j + 3, j] = (
                1 / gaps[j],
                -1 / gaps[j] - 1 / gaps[j + 1],
                1 / gaps[j + 1],
            )
            r[j, j] = (gaps[j] + gaps[j + 1]) / 3
            if j:
                r[j, j - 1] = r[j - 1, j] = gaps[j] / 6
        penalty = q @ np.linalg.solve(r, q.T)
        values = np.linalg.inv(np.eye(count) + count * smooth * penalty)
        bends[1:-1] = np.linalg.solve(r, q.T @ values)
    found = np.empty((len(at), count))
    found[:, order] = _cubic(at, x, values, bends)
    return found


def _cubic(
    at: np.ndarray, x: np.ndarray, values: np.ndarray, bends: np.ndarray
) -> np.ndarray:
    """Returns the natural cubic of values and second derivatives at nodes."""
    if len(x) == 1:
        return np.repeat(values, len(at), 0)
    place = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    low, high = x[place], x[place + 1]
    gap = high - low
    inside = np.clip(at, x[0], x[-1])
    a, b = ((high - inside) / gap)[:, None], ((inside - low) / gap)[:, None]
    scale = (gap**2 / 6)[:, None]
    left, right = bends[place], bends[place + 1]
    found: np.ndarray = a * values[place] + b * values[place + 1]
    found += scale * ((a**3 - a) * left + (b**3 - b) * right)
    slope = (values[place + 1] - values[place]) / gap[:, None]
    bend = (3 * b**2 - 1) * right - (3 * a**2 - 1) * left
    slope += gap[:, None] / 6 * bend
    found += (at - inside)[:, None] * slope
    return found


class Splines(Interpolated):
    """Smoothing splines as encoder and decoder: NeRCC and LeTCC.

    Moradi, Tahmasebi and Maddah-Ali, arXiv 2402.04377 and 2406.00300: a regression in
    the encoder, and one in the decoder whose smoothness trades the error of the fit for
    that of the model's own curvature. Every answer is an estimate, always.
    """

    name = "splines"

    def __init__(
        self,
        model: nn.Module,
        k: int,
        n: int,
        *,
        encoding: float = 0.0,
        decoding: float = 1e-4,
    ) -> None:
        """Takes the model and the sizes.

        Args:
            model: what answers a query.
            k: queries of a group.
            n: workers.
            encoding: smoothness of the encoder; 0: through the queries.
            decoding: smoothness of the decoder.
        """
        if encoding < 0 or decoding < 0:
            raise ConfigError(
                f"smoothness is 0 or more, got encoding={encoding}, decoding={decoding}"
            )
        self._alpha, self._beta = chebyshev_first(k), chebyshev_second(n)
        self._decoding = decoding
        super().__init__(model, k, n, spline(self._beta, self._alpha, encoding))

    def matrix(self, there: list[int]) -> np.ndarray:
        """Return the spline of the answers that are there, read at the queries."""
        return spline(self._alpha, self._beta[there], self._decoding)
