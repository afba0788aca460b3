"""Redundancy that mixes nothing: replicas, a replica of the batch, the stand-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.codes.interface import (
    ESTIMATE,
    EXACT,
    NONE,
    QueryCode,
    Systematic,
    stacked,
)

if TYPE_CHECKING:
    from codedgrad.inference.learned.stand_in import StandIn


class Replica(QueryCode):
    """Worker k + i computes query i again (Dean and Barroso, The tail at scale, 2013).

    Attributes:
        r: how many of the queries have a replica, the first ones.
    """

    name = "replica"

    def __init__(self, model: nn.Module, k: int, r: int | None = None) -> None:
        """Takes the model.

        Args:
            model: what answers a query.
            k: queries of a group.
            r: replicas; None: one for each query.
        """
        self.r = k if r is None else r
        if not 0 <= self.r <= k:
            raise ConfigError(f"replicas are 0 to k={k}, got {r}")
        super().__init__(model, k, k + self.r)

    def encode(self, queries: Tensor) -> list[Tensor]:
        """Return the queries, and the first r again."""
        self.check(queries)
        own = list(queries.unbind(1))
        return own + own[: self.r]

    def decode(self, answers: Mapping[int, Tensor]) -> Tensor:
        """Return whichever answer came."""
        if not answers:
            raise ConfigError(f"{self.name} cannot decode from no answer at all")
        found: dict[int, Tensor] = {}
        for worker, answer in sorted(answers.items()):
            found.setdefault(worker % self.k, answer)
        return stacked(found, self.k)

    def availability(self, there: Set[int]) -> list[str]:
        """Return which queries one of their two workers answers."""
        return [
            EXACT if q in there or (q < self.r and q + self.k in there) else NONE
            for q in range(self.k)
        ]


class BatchReplica(Systematic):
    """One back-up runs all k queries in one call of the model: exact.

    It pays where a batch of k takes little longer than one query: where reading the
    weights, or the call itself, is most of the time.
    """

    name = "batch replica"
    fills = EXACT

    def __init__(self, model: nn.Module, k: int) -> None:
        """Takes the model, and the queries of a group."""
        super().__init__(model, k, most=k)

    def redundant(self, queries: Tensor) -> Tensor:
        """Return all queries."""
        return queries

    def back_up(self, sent: Tensor) -> Tensor:
        """Return all answers, [groups, k, width]."""
        found: Tensor = self.model(sent.flatten(0, 1))
        return found.reshape(len(sent), self.k, -1)

    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the back-up's answers."""
        return {q: parity[:, q] for q in missing if q not in own}


class StandInCode(BatchReplica):
    """One back-up answers all k queries by a stand-in, and needs nobody else.

    Attributes:
        stand_in: made by `codedgrad.inference.learned.distil`.
    """

    name = "stand-in"
    fills = ESTIMATE

    def __init__(self, model: nn.Module, k: int, stand_in: StandIn) -> None:
        """Takes the model, the queries of a group, and the stand-in."""
        super().__init__(model, k)
        self.stand_in = stand_in

    def back_up(self, sent: Tensor) -> Tensor:
        """Return all estimates, [groups, k, width]."""
        values, _ = self.stand_in(sent.flatten(0, 1))
        return values.reshape(len(sent), self.k, -1)
