"""What a search has tried, and what it chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codedgrad.inference.codes.plain import StandInCode
from codedgrad.inference.learned.stand_in import StandIn

if TYPE_CHECKING:
    from collections.abc import Sequence

_POINT = 0.01  # of agreement, that the choice may be below the best at most


@dataclass(frozen=True)
class Candidate:
    """One kind of redundancy, as measured here.

    Attributes:
        name: of it.
        cost: extra seconds for a query, over the model's for a query.
        agreement: of its answer to a query whose owner is missing, with the model's.
        trusted: the share of queries that it may answer, so that at most `error` of
            these answers differ, with 95 % confidence; 1 where it is exact.
        exact: it computes what the model computes.
        others: how many other workers' answers it needs.
        made: the stand-in, the code, or None.
    """

    name: str
    cost: float
    agreement: float
    trusted: float
    exact: bool
    others: int
    made: Any = None


@dataclass(frozen=True)
class Design:
    """The result of a search.

    Attributes:
        candidates: all that were tried.
        choice: the one to use; None: exact only.
        why: the reason for the choice, a sentence.
        budget: what extra seconds were allowed, over the model's.
        left_out: candidates that could not be tried, and why.
    """

    candidates: tuple[Candidate, ...]
    choice: Candidate | None
    why: str
    budget: float
    left_out: tuple[str, ...] = ()

    @property
    def stand_in(self) -> StandIn | None:
        """The stand-in that was chosen, as a predictor takes it; None: another."""
        made = self.choice.made if self.choice else None
        if isinstance(made, StandInCode):
            return made.stand_in
        return made if isinstance(made, StandIn) else None

    def __str__(self) -> str:
        head = ("candidate", "extra time", "agreement", "trusted", "needs", "")
        lines = [head, *(self._line(one) for one in self.candidates)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rows = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
            for line in lines
        ]
        rows += [f"left out: {text}" for text in self.left_out]
        name = self.choice.name if self.choice else "exact only"
        return "\n".join([*(row.rstrip() for row in rows), f"{name}: {self.why}"])

    def _line(self, one: Candidate) -> tuple[str, ...]:
        needs = f"{one.others} others" if one.others else "nobody"
        fits = "" if one.cost <= self.budget else "too slow"
        return (
            one.name,
            f"{100 * one.cost:.1f} %",
            "exact" if one.exact else f"{100 * one.agreement:.2f} %",
            f"{100 * one.trusted:.1f} %",
            needs,
            "chosen" if one is self.choice else fits,
        )


def choose(
    candidates: Sequence[Candidate], budget: float
) -> tuple[Candidate | None, str]:
    """Returns the candidate to use, and why.

    Of those within the budget an exact one is taken, the cheapest. Else, of those whose
    agreement is within a point of the best, the one that may be trusted with the most
    queries, then the cheapest. Where nothing may be trusted, nothing is chosen.

    Args:
        candidates: what was measured.
        budget: extra seconds for a query, over the model's.
    """
    fitting = [one for one in candidates if one.cost <= budget]
    if not fitting:
        if not candidates:
            return None, "nothing could be tried"
        least = min(candidates, key=lambda one: one.cost)
        return None, (
            f"nothing fits {100 * budget:.1f} % extra time; the cheapest, "
            f"{least.name}, takes {100 * least.cost:.1f} %"
        )
    exact = [one for one in fitting if one.exact]
    if exact:
        best = min(exact, key=lambda one: one.cost)
        return best, (
            f"it is exact, and takes {100 * best.cost:.1f} % of {100 * budget:.1f} %"
        )
    most = max(one.agreement for one in fitting)
    near = [one for one in fitting if one.agreement >= most - _POINT]
    best = max(near, key=lambda one: (one.trusted, -one.cost))
    if best.trusted <= 0:
        return None, (
            f"no answer may be trusted; the best, {best.name}, agrees on "
            f"{100 * best.agreement:.1f} % of the queries"
        )
    return best, (
        f"it may answer {100 * best.trusted:.1f} % of the queries, takes "
        f"{100 * best.cost:.1f} % extra time, and agrees within a point of the best "
        f"that fits ({100 * most:.2f} %)"
    )
