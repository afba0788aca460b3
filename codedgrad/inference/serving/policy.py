"""When the stand-in may answer in place of the model: `exact` and `deadline`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codedgrad.errors import ConfigError

_DOUBTFUL = ("replicate", "wait")


@dataclass(frozen=True)
class Policy:
    """How queries are answered; `exact` and `deadline` make one.

    Attributes:
        at_s: the seconds after which the stand-in may answer; None: never, or
            `quantile` says it.
        quantile: the share of the queries whose exact answers come in time, in (0, 1);
            the deadline is learned from it.
        doubtful: what becomes of queries whose doubt is above the threshold.
    """

    at_s: float | None = None
    quantile: float | None = None
    doubtful: str = "wait"

    @property
    def exact(self) -> bool:
        """Whether only the model itself answers."""
        return self.at_s is None and self.quantile is None

    @property
    def replicates(self) -> bool:
        """Whether the stand-in looks at each query at its start."""
        return not self.exact and self.doubtful == "replicate"

    def __str__(self) -> str:
        """Return the policy as a call."""
        if self.exact:
            return "exact()"
        at = f"{self.at_s:g}" if self.at_s is not None else f"'p{self._percent:g}'"
        return f"deadline({at}, doubtful={self.doubtful!r})"

    @property
    def _percent(self) -> float:
        return 100.0 * (self.quantile or 0.0)


def exact() -> Policy:
    """Return the policy by which the model itself answers every query."""
    return Policy()


def deadline(at: float | str, doubtful: str = "replicate") -> Policy:
    """Return the policy by which the stand-in answers what is late.

    Args:
        at: the seconds after which it may answer; 0: at once. Or a quantile of the
            times of exact answers, as "p90" or "p99.5", which is learned online.
        doubtful: what becomes of a query whose doubt is above the stand-in's threshold.
            "replicate": it is computed by two workers from its start; so the stand-in
            looks at each query when it comes. "wait": its exact answer is waited for;
            so the stand-in runs for late queries only.

    Raises:
        ConfigError: `at` or `doubtful` is something else.
    """
    if doubtful not in _DOUBTFUL:
        raise ConfigError(
            f'doubtful must be "replicate" or "wait", got {doubtful!r}; "replicate" '
            f"has another worker compute doubtful queries, too"
        )
    if isinstance(at, str):
        return Policy(quantile=_quantile(at), doubtful=doubtful)
    if isinstance(at, bool) or not isinstance(at, (int, float)):
        raise _wrong(at)
    if not 0.0 <= at < math.inf:
        raise _wrong(at)
    return Policy(at_s=float(at), doubtful=doubtful)


def _quantile(text: str) -> float:
    try:
        percent = float(text.removeprefix("p")) if text.startswith("p") else math.nan
    except ValueError:
        percent = math.nan
    if not 0.0 < percent < 100.0:
        raise _wrong(text)
    return percent / 100.0


def _wrong(at: object) -> ConfigError:
    return ConfigError(
        f'a deadline is seconds, 0 or more, or a quantile such as "p90", between p0 '
        f"and p100, got {at!r}; exact() is the policy without a deadline"
    )
