"""A log: the seconds that every worker took in every step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Log:
    """How long every worker's own pass took, without any exchange.

    Attributes:
        compute: float64 [steps, workers], seconds; NaN where a worker took no part.
        workers: a name for every column.
        meta: what is known of the source; the keys are those of the .npz format.
        segment: int [steps]; neighbouring rows of different segments are not
            neighbours in time.
        source: the file that the log was read from, for messages.
    """

    compute: NDArray[np.float64]
    workers: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    segment: NDArray[np.int64] | None = None
    source: str = "log"

    def __post_init__(self) -> None:
        """Check the times."""
        times = np.asarray(self.compute, np.float64)
        object.__setattr__(self, "compute", times)
        if times.ndim != 2 or 0 in times.shape:
            raise ConfigError(
                f"{self.source}: times of shape {times.shape}, wanted [steps, workers] "
                f"with at least one of each"
            )
        if not self.workers:
            names = tuple(str(i) for i in range(times.shape[1]))
            object.__setattr__(self, "workers", names)
        if len(self.workers) != times.shape[1]:
            raise ConfigError(
                f"{self.source}: {len(self.workers)} names for {times.shape[1]} workers"
            )
        if self.segment is not None and len(self.segment) != len(times):
            raise ConfigError(
                f"{self.source}: {len(self.segment)} segments for {len(times)} steps"
            )
        self._check_times(times)

    def _check_times(self, times: NDArray[np.float64]) -> None:
        known = ~np.isnan(times)
        if not known.any():
            raise ConfigError(f"{self.source}: no worker took part in any step")
        with np.errstate(invalid="ignore"):
            wrong = known & ~((times > 0.0) & np.isfinite(times))
        if wrong.any():
            step, worker = (int(i[0]) for i in np.nonzero(wrong))
            raise ConfigError(
                f"{self.source}: {times[step, worker]} s in step {step} of worker "
                f"{self.workers[worker]} ({int(wrong.sum())} such entries); times must "
                f"be positive, NaN where a worker took no part"
            )

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.compute.shape[0])

    @property
    def size(self) -> int:
        """Number of workers."""
        return int(self.compute.shape[1])

    @property
    def missing_is_late(self) -> bool:
        """Whether a missing time is one of a worker that was late.

        So it is in the log of a run: who has no time of its own in a step began it when
        it was over.
        """
        return bool(self.meta.get("missing") == "late")

    def medians(self) -> NDArray[np.float64]:
        """Return each step's median over the workers, seconds [steps].

        It is NaN where no worker took part.
        """
        out = np.full(self.steps, np.nan)
        some = ~np.isnan(self.compute).all(axis=1)
        out[some] = np.nanmedian(self.compute[some], axis=1)
        return out

    def ratios(self) -> NDArray[np.float64]:
        """Return time over the step's median [steps, workers].

        Steps in which less than half of the workers took part are left out. NaN stands
        where a worker took no part.
        """
        present = (~np.isnan(self.compute)).mean(axis=1) >= 0.5
        if not present.any():
            raise ConfigError(
                f"{self.source}: in no step did half of the workers take part"
            )
        return np.asarray(self.compute[present] / self.medians()[present, None])

    def segments(self) -> NDArray[np.int64]:
        """Return the segment of each step of `ratios`."""
        present = (~np.isnan(self.compute)).mean(axis=1) >= 0.5
        if self.segment is None:
            return np.zeros(int(present.sum()), np.int64)
        return np.asarray(self.segment[present], np.int64)

    def take(self, workers: int, seed: int = 0) -> Log:
        """Return a log of `workers` of these workers, chosen at random, each once.

        Raises:
            ConfigError: there are fewer workers.
        """
        if workers > self.size:
            raise ConfigError(
                f"{self.source} has {self.size} workers, {workers} were asked for; "
                f"sample a profile instead: traces.fit(log).sample(...), or --sample "
                f"on the command line"
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(self.size)[:workers])
        return Log(
            self.compute[:, chosen],
            tuple(self.workers[i] for i in chosen),
            self.meta,
            self.segment,
            self.source,
        )

    def save(self, path: str | Path) -> None:
        """Write the log in the .npz format that `read` reads."""
        arrays: dict[str, Any] = {
            "compute": self.compute.astype(np.float32),
            "workers": np.array(self.workers),
            "meta": np.array(json.dumps(self.meta)),
        }
        if self.segment is not None:
            arrays["segment"] = np.asarray(self.segment)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)


def from_rows(
    steps: Sequence[int] | NDArray[np.int64],
    workers: Sequence[str],
    seconds: Sequence[float] | NDArray[np.float64],
    source: str,
    meta: dict[str, Any] | None = None,
) -> Log:
    """Make a log from (step, worker, seconds) in any order; missing times are NaN.

    Raises:
        ConfigError: a (step, worker) comes twice.
    """
    numbers, row = np.unique(np.asarray(steps, np.int64), return_inverse=True)
    names = sorted(set(workers), key=_natural)
    place = {name: i for i, name in enumerate(names)}
    column = np.array([place[w] for w in workers], np.int64)
    flat = row.reshape(-1) * len(names) + column
    if len(np.unique(flat)) != len(flat):
        counts = np.bincount(flat)
        which = int(np.argmax(counts))
        raise ConfigError(
            f"{source}: step {numbers[which // len(names)]} of worker "
            f"{names[which % len(names)]} comes {counts[which]} times, wanted once"
        )
    times = np.full((len(numbers), len(names)), np.nan)
    times.reshape(-1)[flat] = seconds
    return Log(times, tuple(names), meta or {}, None, source)


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
