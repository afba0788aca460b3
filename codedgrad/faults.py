"""Slowness on purpose, for experiments and tests. Never active by default.

Two kinds. *slow*: a worker takes `factor` times as long, spread over the pass, so
that it can be abandoned at module boundaries as on a slow device. *stall*: one wait
of `seconds` that nothing can interrupt. A plan is text, items separated by ";":

    slow:worker=3,factor=8                     every step
    slow:worker=3,factor=8,steps=10-50         steps 10 .. 49
    stall:worker=1,step=40,seconds=2           once
    random:probability=0.1,factor=8,seed=1     each (worker, step) drawn on its own
    random:probability=0.01,seconds=2,seed=1
    replay:file=LOG.npz,model=rate             a log: time / the step's median
    replay:file=LOG.npz,model=stall

given as `CodedGradient(..., faults=...)` or in the variable CODEDGRAD_FAULTS. With
`local_group` a worker is a group, all of whose processes are slowed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SLICE_S = 1e-3  # longest sleep between two looks whether the pass is still needed
_KINDS = {
    "slow": ({"worker", "factor"}, {"step", "steps", "every"}),
    "stall": ({"worker", "seconds"}, {"step", "steps", "every"}),
    "random": ({"probability"}, {"factor", "seconds", "seed"}),
    "replay": ({"file"}, {"model"}),
}


@dataclass(frozen=True)
class _Item:
    """One fault: its slowness for a (worker, step)."""

    text: str
    worker: int | None = None
    first: int = 0
    stop: float = math.inf
    every: int = 1
    factor: float = 1.0
    seconds: float = 0.0
    probability: float = 1.0
    seed: int = 0
    ratios: NDArray[np.float64] | None = None  # [steps, workers], for replay
    stalls: bool = False

    def strikes(self, worker: int, step: int) -> bool:
        if self.worker is not None and worker != self.worker:
            return False
        if not self.first <= step < self.stop or (step - self.first) % self.every:
            return False
        if self.probability >= 1.0:
            return True
        words = np.random.SeedSequence([self.seed, worker, step]).generate_state(1)
        return float(words[0]) / 2**32 < self.probability

    def ratio(self, worker: int, step: int) -> float:
        if self.ratios is None:
            return 1.0
        return float(self.ratios[step % len(self.ratios), worker])


class Faults:
    """A frozen plan of slowness by (worker, step)."""

    def __init__(self, items: tuple[_Item, ...]) -> None:
        """Use `parse`."""
        self._items = items

    @classmethod
    def parse(cls, text: str, workers: int) -> Faults:
        """Read a plan for `workers` workers; see the module's description.

        Raises:
            ConfigError: an unknown word, a value out of range, an unfit log.
        """
        words = [w.strip() for w in text.split(";") if w.strip()]
        return cls(tuple(_parse_item(word, workers) for word in words))

    def __bool__(self) -> bool:
        """True when there is any fault."""
        return bool(self._items)

    def factor(self, worker: int, step: int) -> float:
        """How many times as long a pass takes, >= 1."""
        factor = 1.0
        for item in self._items:
            if item.strikes(worker, step):
                factor *= item.factor
                if not item.stalls:
                    factor *= max(1.0, item.ratio(worker, step))
        return factor

    def stall_s(self, worker: int, step: int, pass_s: float) -> float:
        """Seconds of the stall before the pass; `pass_s`: a pass's usual seconds."""
        seconds = 0.0
        for item in self._items:
            if item.strikes(worker, step):
                seconds += item.seconds
                if item.stalls:
                    seconds += max(0.0, item.ratio(worker, step) - 1.0) * pass_s
        return seconds

    def describe(self) -> str:
        """The plan as text, for reports."""
        return "; ".join(item.text for item in self._items) or "none"


class Injector:
    """Makes one worker as slow as a plan says, inside its passes."""

    def __init__(self, faults: Faults, worker: int) -> None:
        """For this worker."""
        self._faults = faults
        self._worker = worker
        self._factor = 1.0
        self._last = time.monotonic()
        self.slowed_s = 0.0

    def begin(self, step: int, pass_s: float) -> None:
        """Start of a step's passes: the stall, if one is due."""
        self._factor = self._faults.factor(self._worker, step)
        stall_s = self._faults.stall_s(self._worker, step, pass_s)
        if stall_s > 0.0:
            time.sleep(stall_s)
            self.slowed_s += stall_s
        self.resume()

    def resume(self) -> None:
        """Start of a pass: what came before it is not slowed."""
        self._last = time.monotonic()

    def boundary(self, check: Callable[[], None]) -> None:
        """Stretch the time since the last boundary; `check` may raise in between."""
        if self._factor > 1.0:
            now = time.monotonic()
            end = now + (self._factor - 1.0) * (now - self._last)
            try:
                while (left := end - time.monotonic()) > 0.0:
                    check()
                    time.sleep(min(left, _SLICE_S))
            finally:
                self.slowed_s += time.monotonic() - now
        self._last = time.monotonic()


def _parse_item(text: str, workers: int) -> _Item:
    kind, _, settings = text.partition(":")
    if kind not in _KINDS:
        raise ConfigError(f"no fault {kind!r} in {text!r}; there are {list(_KINDS)}")
    needed, optional = _KINDS[kind]
    values: dict[str, str] = {}
    for word in filter(None, settings.split(",")):
        key, equals, value = word.strip().partition("=")
        if not equals or key not in needed | optional:
            raise ConfigError(
                f"{word!r} in {text!r}: {kind} takes {sorted(needed | optional)}"
            )
        values[key] = value
    if missing := sorted(needed - set(values)):
        raise ConfigError(f"{text!r} lacks {missing}")
    if kind == "replay":
        return _replay(text, values, workers)
    if kind == "random" and not {"factor", "seconds"} & set(values):
        raise ConfigError(f"{text!r} lacks factor=... or seconds=...")
    first, stop = _steps(text, values)
    worker = None
    if "worker" in values:
        worker = int(_number(text, values["worker"], 0, workers - 1))
    return _Item(
        text=text,
        worker=worker,
        first=first,
        stop=stop,
        every=int(_number(text, values.get("every", "1"), 1)),
        factor=_number(text, values.get("factor", "1"), 1),
        seconds=_number(text, values.get("seconds", "0"), 0),
        probability=_number(text, values.get("probability", "1"), 0, 1),
        seed=int(_number(text, values.get("seed", "0"), 0)),
    )


def _steps(text: str, values: dict[str, str]) -> tuple[int, float]:
    if "step" in values:
        step = int(_number(text, values["step"], 0))
        return step, step + 1
    if "steps" not in values:
        return 0, math.inf
    first, dash, stop = values["steps"].partition("-")
    if not dash:
        raise ConfigError(f"steps={first} in {text!r}: write steps=FIRST-STOP")
    return int(_number(text, first, 0)), _number(text, stop, 1)


def _number(text: str, value: str, low: float, high: float = math.inf) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or number == math.inf:
        raise ConfigError(f"{value!r} in {text!r} must be a number in [{low}, {high}]")
    return number


def _replay(text: str, values: dict[str, str], workers: int) -> _Item:
    model = values.get("model", "rate")
    if model not in ("rate", "stall"):
        raise ConfigError(f"model={model} in {text!r}: write model=rate or model=stall")
    path = Path(values["file"])
    try:
        with np.load(path, allow_pickle=False) as log:
            times = np.asarray(log["compute"], np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot replay {path}: {error}; wanted an .npz archive with an array "
            f"`compute` [steps, workers] in seconds"
        ) from error
    if times.ndim != 2 or times.shape[1] < workers:
        raise ConfigError(
            f"{path} has times of shape {times.shape}, wanted [steps, workers] with at "
            f"least {workers} workers"
        )
    with np.errstate(all="ignore"):
        ratios = times / np.nanmedian(times, axis=1, keepdims=True)
    ratios = np.where(np.isfinite(ratios), ratios, 1.0)[:, :workers]
    return _Item(text=text, ratios=ratios, stalls=model == "stall")
