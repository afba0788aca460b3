"""Learned parities: one network that answers for a sum or a collage of queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codedgrad.errors import ConfigError
from codedgrad.inference.codes.interface import Systematic
from codedgrad.inference.learned.outputs import divergence


class ParitySum(Systematic):
    """ParM: a parity model of the sum of k queries.

    Kosaian, Rashmi and Venkataraman, SOSP 2019 (arXiv 1905.00863): the encoder adds the
    queries, P = sum_i x_i, the parity model is trained to answer g(P) = sum_i f(x_i) by
    the squared error, and the decoder subtracts, f(x_j) ~ g(P) - sum_{i != j} f(x_i).

    Attributes:
        parity: the parity model g, to be trained with `fit`.
    """

    name = "parity sum"

    def __init__(self, model: nn.Module, k: int, parity: nn.Module) -> None:
        """Takes the model, the queries of a group, and the parity model."""
        super().__init__(model, k)
        self.parity = parity

    def redundant(self, queries: Tensor) -> Tensor:
        """Return the sum of the queries."""
        if not queries.is_floating_point():
            raise ConfigError(
                f"{self.name} adds queries, which must be floats, got {queries.dtype}"
            )
        return queries.sum(1)

    def back_up(self, sent: Tensor) -> Tensor:
        """Return what the parity model answers."""
        found: Tensor = self.parity(sent)
        return found

    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the difference."""
        found = parity
        for answer in own.values():
            found = found - answer
        return {missing[0]: found}

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return list(self.parity.parameters())

    def distance(self, queries: Tensor, exact: Tensor) -> Tensor:
        """Return the paper's loss: the squared error of the sum of the answers."""
        found = self.parity(self.redundant(queries))
        return F.mse_loss(found, exact.sum(1))


class Collage(Systematic):
    """One network answers for a collage of k queries at once.

    Narra, Lin, Kiamari, Avestimehr and Annavaram, arXiv 1904.12222 (and the
    concatenation of ParM): queries are averaged down by the grid and put side by side,
    so that the collage is as large as one query. k of images is a square.

    Attributes:
        net: from a collage to k answers, [groups, k * width].
    """

    name = "collage"

    def __init__(self, model: nn.Module, k: int, net: nn.Module) -> None:
        """Takes the model, the queries of a group, and the network."""
        super().__init__(model, k, most=k)
        self.net = net

    def redundant(self, queries: Tensor) -> Tensor:
        """Return the collage."""
        sides = queries.dim() - 3
        grid = math.isqrt(self.k) if sides == 2 else self.k
        if sides not in (1, 2) or grid**sides != self.k:
            raise ConfigError(
                f"a collage is of series, or of a square number of images; got k="
                f"{self.k} queries of shape {tuple(queries.shape[2:])}"
            )
        size = queries.shape[3:]
        if any(side % grid for side in size):
            raise ConfigError(
                f"a collage of {self.k} needs sides that {grid} divides, got "
                f"{tuple(size)}"
            )
        if sides == 1:
            small = F.avg_pool1d(queries.flatten(0, 1), grid)
            rows = small.unflatten(0, queries.shape[:2]).unbind(1)
            return torch.cat(rows, -1)
        small = F.avg_pool2d(queries.flatten(0, 1), grid)
        tiles = small.unflatten(0, queries.shape[:2]).unbind(1)
        lines = [torch.cat(tiles[i : i + grid], -1) for i in range(0, self.k, grid)]
        return torch.cat(lines, -2)

    def back_up(self, sent: Tensor) -> Tensor:
        """Return what the network answers, [groups, k, width]."""
        found: Tensor = self.net(sent)
        return found.reshape(len(sent), self.k, -1)

    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the network's answers."""
        return {q: parity[:, q] for q in missing if q not in own}

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return list(self.net.parameters())

    def distance(self, queries: Tensor, exact: Tensor) -> Tensor:
        """Return the divergence of the network's answers from the model's."""
        found = self.back_up(self.redundant(queries))
        return divergence(found, exact)
