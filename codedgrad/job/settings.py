"""Settings of a coded step, as frozen dataclasses with the reason for each field.

    codedgrad.CodedGradient(model, wire="bfloat16", patience=0.2)        # shorthand
    codedgrad.CodedGradient(model, settings=Settings(                    # the same
        exchange=ExchangeSettings(wire="bfloat16"), help=HelpSettings(patience=0.2)))

Every field of `ExchangeSettings`, `HelpSettings` and `RunSettings`, and `policy`, can
be given as a keyword of its own; a keyword wins over the same field of `settings`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from codedgrad.errors import ConfigError, unknown_keywords

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.job.faults import Faults

LATE = ("refresh", "compensate")
NONFINITE = ("raise", "continue", "refuse")


@dataclass(frozen=True)
class ExchangeSettings:
    """What is exchanged between the workers, and how.

    Attributes:
        wire: type in which gradients travel. None is the parameters' own: "bfloat16" or
            "float16" where all that require a gradient have it, as after
            `model.bfloat16()`, and else "float32", which sends 32 bits (64 of float64).
            "bfloat16" and "float16" send half the bytes. Every addition up to a
            worker's row, and the sum, is then rounded to that type, so that the bits
            still depend on nobody's lateness, but on the number of workers (see
            `codedgrad.row.layout`). float16 overflows beyond 65,504 and loses what is
            below 6e-8: scale the loss. A 16-bit wire, also one that None chooses,
            switches three things off: deputies (a stopped or killed worker then holds
            up or ends the job, also over sockets), decoding on the GPU, and rows in
            pinned memory of the host; `wire="float32"` brings them back. Codes with
            `linear=True` take "float32" only.
        bucket_mb: size in MiB of the pieces that are exchanged and decoded; cuts move
            to the end of a tensor near by. None chooses it by the rule of
            `codedgrad.row.cuts`, from the size of the gradient and (from 4 MiB on) from
            what a message costs, which is measured in the job.
        overlap: whether a worker's own row is sent bucket by bucket while its last
            backward runs (see `codedgrad.row.writer`). No bit of the result depends on
            it.
        window: number of steps that the slowest worker may lag before the others wait
            for it; each open step takes memory.
    """

    wire: str | None = None
    bucket_mb: float | None = None
    overlap: bool = True
    window: int = 16


@dataclass(frozen=True)
class HelpSettings:
    """When an idle worker begins to help.

    Attributes:
        patience: fraction of a pass that an idle worker waits before it computes what
            a late one has not sent.
    """

    patience: float = 0.1


@dataclass(frozen=True)
class RunSettings:
    """What belongs to the run rather than to the exchange.

    Attributes:
        seed: seed of the random numbers inside the passes (dropout, what the loss
            function draws). What a dataset draws follows the seed of its sampler.
        same_bits: False computes a worker's own shard in one pass, at the batch size
            that you chose; only helpers cut a late shard into micro-batches. All
            workers hold the same bits in every step, but the rounding, and the dropout
            masks of a helped shard, can depend on who was late. True computes every
            shard as its micro-batches, so that no bit depends on who was late. A loss
            that compares samples, and batch norm, then see micro-batches, of which
            there is a warning; `pieces=False` gives them whole shards with the same
            bits whoever is late. See `codedgrad.step.pieces`.
        pieces: whether helpers may take single micro-batches. "auto" has them take
            whole shards where the model has batch norm, which makes a micro-batch
            another function than its part of the shard. False does so always: give it
            for a loss that compares the samples of a batch (contrastive, ranking).
        on_nonfinite: what happens to NaN and Inf. "raise" ends the job, "continue"
            lets them through and counts them in `nonfinite`, and "refuse" (under an
            approximate policy, where it is the default) makes owners leave such rows
            out and estimate the step from the others. A single worker has nothing to
            estimate from: "refuse" is "raise" there. None chooses the default.
        faults: slowness to inject, for experiments; None reads CODEDGRAD_FAULTS.
        log: folder in which each worker records its own seconds of compute, for
            `codedgrad plan`; None records nothing.
        local_group: processes that are one worker of the code together and divide its
            micro-batches: "node" takes those of each machine, a number takes so many
            consecutive ranks (see `codedgrad.groups`). `code`, `faults` and `log` then
            number the groups. None makes each process a worker.
    """

    seed: int = 0
    same_bits: bool = False
    pieces: bool | str = "auto"
    on_nonfinite: str | None = None
    faults: Faults | str | None = None
    log: str | Path | None = None
    local_group: str | int | None = None


@dataclass(frozen=True)
class Approximate:
    """What `approximate` returns: when a step may end with an estimate."""

    max_error: float = 0.1
    max_noise: float = math.inf
    patience: float = 0.1
    late: str = "refresh"

    def __post_init__(self) -> None:
        """Refuse settings that are out of range."""
        if not self.max_error >= 0.0:
            raise ConfigError(
                f"max_error is a relative squared error, 0 or more (0: exact), got "
                f"{self.max_error}"
            )
        if not self.max_noise >= 0.0:
            raise ConfigError(
                f"max_noise is a share of the batch's own sampling noise, 0 or more "
                f"(0: exact), got {self.max_noise}"
            )
        if not 0.0 <= self.patience <= 100.0:
            raise ConfigError(
                f"patience is a fraction of a pass, 0 to 100, got {self.patience}"
            )
        if self.late not in LATE:
            raise ConfigError(f"late must be one of {LATE}, got {self.late!r}")

    def describe(self) -> str:
        """Returns the settings in one line."""
        return (
            f"approximate(max_error={self.max_error:g}, "
            f"max_noise={self.max_noise:g}, patience={self.patience:g}, "
            f"late={self.late})"
        )


def approximate(
    max_error: float | None = None,
    *,
    max_noise: float | None = None,
    patience: float = 0.1,
    late: str = "refresh",
) -> Approximate:
    """Lets a step end before the arrivals cover the batch.

    An owner settles for an estimate g^ of its slice once its patience is over and the
    estimate is good enough. There are two measures. A batch is a sample, and its
    gradient g is off from the gradient m of all data by its sampling noise;

        E|g^ - m|^2  <=  (1 + max_noise) E|g - m|^2

    makes a step as noisy as one with a batch smaller by at most 1 / (1 + max_noise),
    and no more than the share `max_noise` of the batch is missing. Noise is told from
    what the shards hold: where they differ for good (sorted by class), their spread is
    bias, and the owner waits for what it cannot estimate from memory (see
    `codedgrad.lab.decoders.noise`). The other measure knows no noise,

        bound on |g^ - g|^2 / |g|^2  <=  max_error,

    kept such that about 3 of 100 slices exceed it (see
    `codedgrad.lab.decoders.predictor`). Where the arrivals cover the batch before that,
    the result is the exact one, bit for bit.

    Args:
        max_error: largest relative squared error of a slice of a bucket. 0 means
            exact; `math.inf` never waits for the late. None is 0.1 where `max_noise`
            is not given, and no bound where it is.
        max_noise: largest share of the batch's own sampling noise that an estimate may
            add, such as 0.25. 0 means exact; None is no bound. Where both are given,
            both must hold. It bounds each step; docs/figures.md tells what it cost in
            the loss of whole trainings, which so far is more than it bounds.
        patience: how long an owner waits for the rest once half of the batch is there,
            as a fraction of the time that half took.
        late: what becomes of rows that come late. With "refresh" they teach the decoder
            and are remembered; with "compensate" what the estimate missed is also added
            to the next step's gradient (error feedback), so that in the long run every
            sample counts once.

    Raises:
        ConfigError: a setting is out of range.
    """
    if max_error is None:
        max_error = 0.1 if max_noise is None else math.inf
    noise = math.inf if max_noise is None else float(max_noise)
    return Approximate(float(max_error), noise, float(patience), late)


@dataclass(frozen=True)
class Settings:
    """All settings of a `CodedGradient`.

    Attributes:
        exchange: what is exchanged, and how.
        help: when an idle worker helps.
        policy: "exact" ends a step when the arrivals cover the batch;
            `approximate(...)` also when a learned decoder's estimate is good enough.
        run: seed, faults, log, local groups.
    """

    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    help: HelpSettings = field(default_factory=HelpSettings)
    policy: str | Approximate = "exact"
    run: RunSettings = field(default_factory=RunSettings)

    def on_nonfinite(self) -> str:
        """Returns what happens to NaN and Inf, the default filled in.

        Raises:
            ConfigError: `run.on_nonfinite` is nothing that the policy knows.
        """
        chosen = self.run.on_nonfinite
        if chosen is None:
            chosen = "raise" if resolve(self.policy) is None else "refuse"
        exact = resolve(self.policy) is None
        known = ("raise", "continue") if exact else NONFINITE
        if chosen not in known:
            why = (
                "; in an exact step no row can be left out, that takes "
                "approximate(...) with bounds above 0"
                if exact and chosen == "refuse"
                else ""
            )
            raise ConfigError(
                f"on_nonfinite must be one of {known} under {self.policy}, got "
                f"{chosen!r}{why}"
            )
        return chosen


class Keywords(TypedDict, total=False):
    """The fields of `Settings` that can be given as keywords."""

    wire: str | None
    bucket_mb: float | None
    overlap: bool
    window: int
    patience: float
    policy: str | Approximate
    seed: int
    same_bits: bool
    pieces: bool | str
    on_nonfinite: str | None
    faults: Faults | str | None
    log: str | Path | None
    local_group: str | int | None


def combine(
    settings: Settings | None,
    keywords: Keywords,
    called: Callable[..., Any] | None = None,
) -> Settings:
    """Returns `settings` with the keywords put in.

    Args:
        settings: where to begin; None begins with the defaults.
        keywords: values by field name.
        called: what was called with them, for messages; None: `Settings`.

    Raises:
        TypeError: there is no such keyword.
    """
    base = Settings() if settings is None else settings
    given: dict[str, Any] = dict(keywords)
    changed: dict[str, Any] = {}
    if "policy" in given:
        changed["policy"] = given.pop("policy")
    for name in ("exchange", "help", "run"):
        group = getattr(base, name)
        own = {f.name for f in dataclasses.fields(group)} & set(given)
        if own:
            values = {field_name: given.pop(field_name) for field_name in own}
            changed[name] = dataclasses.replace(group, **values)
    if given:
        raise unknown_keywords(called or Settings, given, Keywords.__annotations__)
    return dataclasses.replace(base, **changed)


def resolve(policy: str | Approximate) -> Approximate | None:
    """Returns a policy's settings, or None where every step is exact.

    Raises:
        ConfigError: `policy` is neither "exact" nor `approximate(...)`.
    """
    if policy == "exact":
        return None
    if not isinstance(policy, Approximate):
        raise ConfigError(
            f'policy must be "exact" or codedgrad.approximate(...), got {policy!r}'
        )
    return policy if min(policy.max_error, policy.max_noise) > 0.0 else None


def finite_or(value: float) -> float:
    """Returns a number that the engine can compare with: the largest double for Inf."""
    return value if math.isfinite(value) else 1.7e308
