"""What a code for queries is: k queries, and workers that answer them or mixtures.

Workers 0 to k - 1 are usually the owners of the queries, and those behind them are
redundant. All tensors hold many groups of k queries at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

EXACT, ESTIMATE, NONE = "exact", "estimate", "none"


class QueryCode(ABC):
    """Redundancy for k queries of one model.

    Attributes:
        model: what answers a query.
        k: queries of a group.
        n: workers of a group.
        plain: how many of them, the first ones, run the model on what they are sent.
        name: of the code, in tables.
    """

    name = ""

    def __init__(self, model: nn.Module, k: int, n: int) -> None:
        """Notes the sizes.

        Args:
            model: what answers a query, in eval mode.
            k: queries of a group.
            n: workers of a group.
        """
        if k < 1 or n < k:
            raise ConfigError(
                f"a code needs queries, and a worker for each, got k={k}, n={n}"
            )
        self.model, self.k, self.n = model, k, n
        self.plain = n

    @abstractmethod
    def encode(self, queries: Tensor) -> list[Tensor]:
        """Return what each worker is sent.

        Args:
            queries: [groups, k, ...].

        Returns:
            For each worker what `compute` takes.
        """

    def compute(self, worker: int, sent: Tensor) -> Tensor:
        """Return what a worker answers: the model's answer, if it runs the model.

        Args:
            worker: 0 to n - 1.
            sent: what `encode` gave it.
        """
        found: Tensor = self.model(sent) if worker < self.plain else self.back_up(sent)
        return found

    def back_up(self, sent: Tensor) -> Tensor:
        """Return what a worker that does not run the model on one query answers."""
        raise NotImplementedError(f"all workers of {self.name} run the model: {sent}")

    @abstractmethod
    def decode(self, answers: Mapping[int, Tensor]) -> Tensor:
        """Return answers to all k queries from those of some workers.

        Args:
            answers: by worker.

        Returns:
            [groups, k, width]; NaN for a query that they do not answer.
        """

    @abstractmethod
    def availability(self, there: Set[int]) -> list[str]:
        """Return "exact", "estimate" or "none" for each query.

        Args:
            there: workers whose answers have come.
        """

    def cost(self, queries: Tensor) -> float:
        """Return the extra work for a query, in predictions of the model.

        Multiplications of matrices and convolutions are counted, over encoding, all
        workers and decoding with query 0's owner missing.

        Args:
            queries: [groups, k, ...].
        """

        def whole() -> None:
            sent = self.encode(queries)
            answers = {w: self.compute(w, x) for w, x in enumerate(sent)}
            self.decode({w: a for w, a in answers.items() if w})

        alone = _work(lambda: self.model(queries.flatten(0, 1)))
        if not alone:
            raise ConfigError(
                "the model multiplies nothing, so no work can be compared"
            )
        return _work(whole) / alone - 1

    def answers(self, queries: Tensor, missing: Set[int] = frozenset()) -> Tensor:
        """Encode, compute on all workers that are not missing, and decode.

        Args:
            queries: [groups, k, ...].
            missing: workers that do not answer.
        """
        sent = self.encode(queries)
        here = {w: self.compute(w, x) for w, x in enumerate(sent) if w not in missing}
        return self.decode(here)

    def check(self, queries: Tensor) -> None:
        """Refuses queries that are not in groups of k.

        Raises:
            ConfigError: they are not.
        """
        if queries.dim() < 3 or queries.shape[1] != self.k:
            raise ConfigError(
                f"{self.name} takes queries of shape [groups, {self.k}, ...], got "
                f"{tuple(queries.shape)}"
            )


class Systematic(QueryCode):
    """k workers answer a query each, with the model, and one more is redundant.

    Attributes:
        most: missing answers that the redundant worker fills; k where it needs no
            other answer, else 1.
        fills: whether what it fills in is "exact" or an "estimate".
    """

    fills = ESTIMATE

    def __init__(self, model: nn.Module, k: int, most: int = 1) -> None:
        """Takes the model, the queries of a group, and what can be filled."""
        super().__init__(model, k, k + 1)
        self.plain, self.most = k, most

    def encode(self, queries: Tensor) -> list[Tensor]:
        """Return the queries, and what the redundant worker is sent."""
        self.check(queries)
        return [*queries.unbind(1), self.redundant(queries)]

    def decode(self, answers: Mapping[int, Tensor]) -> Tensor:
        """Return the owners' answers, and the redundant worker's where they miss."""
        if not answers:
            raise ConfigError(f"{self.name} cannot decode from no answer at all")
        own = {w: a for w, a in answers.items() if w < self.k}
        missing = [q for q in range(self.k) if q not in own]
        if self.k in answers and 0 < len(missing) <= self.most:
            own = {**own, **self.fill(own, answers[self.k], missing)}
        return stacked(own, self.k, answers[self.k] if not own else None)

    def availability(self, there: Set[int]) -> list[str]:
        """Return which queries are answered."""
        missing = self.k - len([q for q in there if q < self.k])
        filled = self.fills if self.k in there and missing <= self.most else NONE
        return [EXACT if q in there else filled for q in range(self.k)]

    @abstractmethod
    def redundant(self, queries: Tensor) -> Tensor:
        """Return what the redundant worker is sent."""

    @abstractmethod
    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the missing answers.

        Args:
            own: the owners' answers that came.
            parity: the redundant worker's answer.
            missing: the queries without an answer, at most `most`.
        """


def stacked(found: Mapping[int, Tensor], k: int, like: Tensor | None = None) -> Tensor:
    """Returns answers as [groups, k, width], NaN for a query without one."""
    some = next(iter(found.values())) if found else like
    assert some is not None
    nothing = some.new_full(some.shape, float("nan"))
    return torch.stack([found.get(q, nothing) for q in range(k)], 1)


def _work(function: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())
