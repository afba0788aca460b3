"""When a step may end: with all of the batch, or with a good enough estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codedgrad.errors import ConfigError

LATE = ("refresh", "compensate")


@dataclass(frozen=True)
class Approximate:
    """Settings of `approximate`."""

    max_error: float = 0.1
    patience: float = 0.1
    late: str = "refresh"

    def __post_init__(self) -> None:
        """Check."""
        if not self.max_error >= 0.0:
            raise ConfigError(
                f"max_error is a relative squared error, 0 or more (0: exact), got "
                f"{self.max_error}"
            )
        if not 0.0 <= self.patience <= 100.0:
            raise ConfigError(
                f"patience is a fraction of a pass, 0 to 100, got {self.patience}"
            )
        if self.late not in LATE:
            raise ConfigError(f"late must be one of {LATE}, got {self.late!r}")

    def describe(self) -> str:
        """One line."""
        return (
            f"approximate(max_error={self.max_error:g}, patience={self.patience:g}, "
            f"late={self.late})"
        )


def approximate(
    max_error: float = 0.1, *, patience: float = 0.1, late: str = "refresh"
) -> Approximate:
    """Let a step end before the arrivals cover the batch.

    An owner settles for the learned decoder's estimate g^ of its slice once its
    patience is over and the bound on the error is small enough,

        bound on |g^ - g|^2 / |g|^2  <=  max_error,

    a bound that is kept such that about 3 of 100 slices exceed it (see
    `codedgrad.lab.decoders.predictor`). Where the arrivals cover before that, the result is
    the exact one, bit for bit.

    Args:
        max_error: relative squared error, per slice of a bucket. 0: exact;
            `math.inf`: never wait for the late.
        patience: how long an owner waits for the rest once half of the batch is there,
            as a fraction of the time that half took.
        late: what becomes of rows that come late. "refresh": they teach the decoder
            and are remembered; "compensate": what the estimate missed is also added to
            the next step's gradient (error feedback), so that in the long run every
            sample counts once.

    Raises:
        ConfigError: a setting out of range.
    """
    return Approximate(float(max_error), float(patience), late)


def resolve(policy: str | Approximate) -> Approximate | None:
    """The settings; None where every step is exact.

    Raises:
        ConfigError: neither "exact" nor `approximate(...)`.
    """
    if policy == "exact":
        return None
    if not isinstance(policy, Approximate):
        raise ConfigError(
            f'policy must be "exact" or codedgrad.approximate(max_error=...), got '
            f"{policy!r}"
        )
    return policy if policy.max_error > 0.0 else None


def finite_or(value: float) -> float:
    """A number that the engine can compare with: infinity as the largest double."""
    return value if math.isfinite(value) else 1.7e308


@dataclass(frozen=True)
class ExchangeSettings:
    """What is exchanged, and how."""

    wire: str = "float32"
    bucket_mb: float | None = None
    overlap: bool = True
    window: int = 16
