"""Slowness on purpose, for experiments and tests. No fault is ever active by default.

There are three kinds of slowness, and two ways to die. *slow*: a worker takes `factor`
times as long, spread over the pass, so that the pass can be abandoned at module
boundaries as on a slow device. *stall*: one wait of `seconds` that nothing can
interrupt. *stop*: the whole process stands still for `seconds`, by SIGSTOP, its engine
too. *kill*: it is killed by SIGKILL, `after` seconds after its pass has begun. *exit*:
it ends before its pass by `os._exit(1)`. A plan is text whose items are separated by
";":

    slow:worker=3,factor=8                     every step
    slow:worker=3,factor=8,steps=10-50         steps 10 .. 49
    stall:worker=1,step=40,seconds=2           once
    stop:worker=1,step=40,seconds=2            once
    kill:worker=1,step=40,after=0.01           `after` is 0 unless you say so
    exit:worker=1,step=40
    random:probability=0.1,factor=8,seed=1     each (worker, step) drawn on its own
    random:probability=0.01,seconds=2,seed=1
    replay:file=LOG.npz,model=rate             a log: time / the step's median
    replay:file=LOG.npz,model=stall

It is given as `CodedGradient(..., faults=...)` or in the variable CODEDGRAD_FAULTS.
With `local_group` a worker is a group, and all of its processes are slowed.

A new kind is one entry of KINDS, at the end of this file.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from codedgrad.codes import options
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SLICE_S = 1e-3  # longest sleep between two checks whether the pass is still needed


class Fault(Protocol):
    """One item of a plan: the slowness that it brings, by worker and step."""

    def factor(self, worker: int, step: int) -> float:
        """Return how many times as long a pass takes, >= 1."""

    def stall_s(self, worker: int, step: int, pass_s: float) -> float:
        """Return the seconds that the worker stands still before its pass.

        `pass_s` is how long a pass usually takes, in seconds.
        """

    def stop_s(self, worker: int, step: int) -> float:
        """Return the seconds that the worker's process is stopped before its pass."""

    def death(self, worker: int, step: int) -> Callable[[], None] | None:
        """Return what ends the worker's process in this step, if something does."""


class Faults:
    """A frozen plan of slowness by (worker, step)."""

    def __init__(self, items: tuple[tuple[str, Fault], ...]) -> None:
        """Take the faults, each with the text that it was read from; see `parse`."""
        self._texts = tuple(text for text, _ in items)
        self._faults = tuple(fault for _, fault in items)

    @classmethod
    def parse(cls, text: str, workers: int) -> Faults:
        """Read a plan for `workers` workers; the module describes the syntax.

        Raises:
            ConfigError: a word is unknown, a value is out of range, or a log does not
                fit.
        """
        words = [w.strip() for w in text.split(";") if w.strip()]
        return cls(tuple((word, _read(word, workers)) for word in words))

    def __bool__(self) -> bool:
        """Return True when there is any fault."""
        return bool(self._faults)

    def factor(self, worker: int, step: int) -> float:
        """Return how many times as long a pass takes, >= 1."""
        return math.prod(fault.factor(worker, step) for fault in self._faults)

    def stall_s(self, worker: int, step: int, pass_s: float) -> float:
        """Return the seconds of the stall before a pass that usually takes `pass_s`."""
        stalls = (fault.stall_s(worker, step, pass_s) for fault in self._faults)
        return sum(stalls, 0.0)

    def stop_s(self, worker: int, step: int) -> float:
        """Return the seconds that the worker's process is stopped before its pass."""
        return sum((fault.stop_s(worker, step) for fault in self._faults), 0.0)

    def death(self, worker: int, step: int) -> Callable[[], None] | None:
        """Return what ends the worker's process in this step, if something does."""
        deaths = (fault.death(worker, step) for fault in self._faults)
        return next((death for death in deaths if death is not None), None)

    def describe(self) -> str:
        """Return the plan as text, for reports."""
        return "; ".join(self._texts) or "none"


class Injector:
    """Makes one worker as slow as a plan says, inside its passes."""

    def __init__(self, faults: Faults, worker: int) -> None:
        """Take the plan and the number of this worker."""
        self._faults = faults
        self._worker = worker
        self._factor = 1.0
        self._last = time.monotonic()
        self.slowed_s = 0.0

    def begin(self, step: int, pass_s: float) -> None:
        """Begin a step's passes; sleep first if a stall is due."""
        self._factor = self._faults.factor(self._worker, step)
        stall_s = self._faults.stall_s(self._worker, step, pass_s)
        if stall_s > 0.0:
            time.sleep(stall_s)
        stop_s = self._faults.stop_s(self._worker, step)
        if stop_s > 0.0:
            stop_process(stop_s)
        self.slowed_s += stall_s + stop_s
        if death := self._faults.death(self._worker, step):
            death()
        self.resume()

    def resume(self) -> None:
        """Begin a pass; the time before it is not stretched."""
        self._last = time.monotonic()

    def boundary(self, check: Callable[[], None]) -> None:
        """Stretch the time since the last boundary.

        `check` is called again and again meanwhile. What it raises ends the stretching,
        so that a pass which nobody needs any more is left at once.
        """
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


def stop_process(seconds: float) -> None:
    """Stop this process, with all its threads; another process wakes it in time.

    Args:
        seconds: how long, at least 0.05.
    """
    # Woken twice: the first signal could come before the stop on a busy machine.
    text = 'sleep "$1"; kill -CONT "$2"; sleep 1; kill -CONT "$2"'
    command = ["sh", "-c", text, "sh", f"{max(0.05, seconds):.3f}", str(os.getpid())]
    waker = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.kill(os.getpid(), signal.SIGSTOP)
    threading.Thread(target=waker.wait, daemon=True).start()


def kill_process(after_s: float = 0.0) -> None:
    """Kill this process by SIGKILL, so many seconds from now."""
    if after_s <= 0.0:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Timer(after_s, kill_process).start()


@dataclass(frozen=True)
class _Timed:
    """All kinds but replay: who is struck, when, by what and how much."""

    worker: int | None = None
    first: int = 0
    stop: float = math.inf
    every: int = 1
    slowdown: float = 1.0
    seconds: float = 0.0
    probability: float = 1.0
    seed: int = 0
    stops: bool = False  # the process, and not only the pass
    end: Callable[[], None] | None = None  # of the process

    def factor(self, worker: int, step: int) -> float:
        return self.slowdown if self._strikes(worker, step) else 1.0

    def stall_s(self, worker: int, step: int, pass_s: float) -> float:  # noqa: ARG002
        strikes = not self.stops and self._strikes(worker, step)
        return self.seconds if strikes else 0.0

    def stop_s(self, worker: int, step: int) -> float:
        return self.seconds if self.stops and self._strikes(worker, step) else 0.0

    def death(self, worker: int, step: int) -> Callable[[], None] | None:
        return self.end if self._strikes(worker, step) else None

    def _strikes(self, worker: int, step: int) -> bool:
        if self.worker is not None and worker != self.worker:
            return False
        if not self.first <= step < self.stop or (step - self.first) % self.every:
            return False
        if self.probability >= 1.0:
            return True
        words = np.random.SeedSequence([self.seed, worker, step]).generate_state(1)
        return float(words[0]) / 2**32 < self.probability


@dataclass(frozen=True)
class _Replay:
    """The kind replay: a log's times, divided by the median of their step.

    Attributes:
        ratios: float64 [steps, workers]; the log begins again after its last step.
        stalls: True for model=stall, where what exceeds 1 is one wait.
    """

    ratios: NDArray[np.float64]
    stalls: bool

    def factor(self, worker: int, step: int) -> float:
        return 1.0 if self.stalls else max(1.0, self._ratio(worker, step))

    def stall_s(self, worker: int, step: int, pass_s: float) -> float:
        if not self.stalls:
            return 0.0
        return max(0.0, self._ratio(worker, step) - 1.0) * pass_s

    def stop_s(self, worker: int, step: int) -> float:  # noqa: ARG002
        return 0.0

    def death(self, worker: int, step: int) -> None:
        del worker, step

    def _ratio(self, worker: int, step: int) -> float:
        return float(self.ratios[step % len(self.ratios), worker])


def _read(text: str, workers: int) -> Fault:
    """Read one item of a plan."""

    def kind_of(name: str) -> Kind:
        if name not in KINDS:
            raise ConfigError(f"no fault {name!r} in {text!r}; there are {list(KINDS)}")
        return KINDS[name]

    def refusal(name: str, word: str) -> str:
        return f"{word!r} in {text!r}: {name} takes {sorted(kind_of(name).keys)}"

    name, values = options.parse(text, lambda name: kind_of(name).keys, refusal)
    if missing := sorted(kind_of(name).needed - set(values)):
        raise ConfigError(f"{text!r} lacks {missing}")
    return kind_of(name).read(text, values, workers)


def _read_timed(text: str, values: dict[str, str], workers: int) -> _Timed:
    first, stop = _steps(text, values)
    worker = None
    if "worker" in values:
        worker = int(_number(text, values["worker"], 0, workers - 1))
    return _Timed(
        worker=worker,
        first=first,
        stop=stop,
        every=int(_number(text, values.get("every", "1"), 1)),
        slowdown=_number(text, values.get("factor", "1"), 1),
        seconds=_number(text, values.get("seconds", "0"), 0),
        probability=_number(text, values.get("probability", "1"), 0, 1),
        seed=int(_number(text, values.get("seed", "0"), 0)),
    )


def _read_stop(text: str, values: dict[str, str], workers: int) -> Fault:
    return replace(_read_timed(text, values, workers), stops=True)


def _read_kill(text: str, values: dict[str, str], workers: int) -> Fault:
    after_s = _number(text, values.get("after", "0"), 0)
    end = partial(kill_process, after_s)
    return replace(_read_timed(text, values, workers), end=end)


def _read_exit(text: str, values: dict[str, str], workers: int) -> Fault:
    return replace(_read_timed(text, values, workers), end=partial(os._exit, 1))


def _read_random(text: str, values: dict[str, str], workers: int) -> Fault:
    if not {"factor", "seconds"} & set(values):
        raise ConfigError(f"{text!r} lacks factor=... or seconds=...")
    return _read_timed(text, values, workers)


def _read_replay(text: str, values: dict[str, str], workers: int) -> Fault:
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
    return _Replay(ratios, stalls=model == "stall")


def _steps(text: str, values: dict[str, str]) -> tuple[int, float]:
    """Return the first step that is struck, and the one past the last."""
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
    """Return `value` as a finite number in [low, high]; `text` is for the message."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or number == math.inf:
        raise ConfigError(f"{value!r} in {text!r} must be a number in [{low}, {high}]")
    return number


@dataclass(frozen=True)
class Kind:
    """How one kind of fault is written.

    Attributes:
        needed: keys that must be there.
        optional: keys that may be there.
        read: makes the fault from its text (for messages), its values by key, and the
            number of workers.
    """

    needed: frozenset[str]
    optional: frozenset[str]
    read: Callable[[str, dict[str, str], int], Fault]

    @property
    def keys(self) -> frozenset[str]:
        """All keys that the kind takes."""
        return self.needed | self.optional


_WHEN = frozenset({"step", "steps", "every"})
KINDS: dict[str, Kind] = {
    "slow": Kind(frozenset({"worker", "factor"}), _WHEN, _read_timed),
    "stall": Kind(frozenset({"worker", "seconds"}), _WHEN, _read_timed),
    "stop": Kind(frozenset({"worker", "step", "seconds"}), frozenset(), _read_stop),
    "kill": Kind(frozenset({"worker", "step"}), frozenset({"after"}), _read_kill),
    "exit": Kind(frozenset({"worker", "step"}), frozenset(), _read_exit),
    "random": Kind(
        frozenset({"probability"}),
        frozenset({"factor", "seconds", "seed"}),
        _read_random,
    ),
    "replay": Kind(frozenset({"file"}), frozenset({"model"}), _read_replay),
}
