"""The gate: up to which doubt a stand-in is trusted, learned and kept true online.

Thresholds of a fixed list are tried from small to large on answers with a known loss,
and the last one before the upper confidence bound on the trusted answers' mean loss
exceeds `error` is taken: a test in fixed sequence, whose confidence holds for the
choice as a whole (Angelopoulos et al., Learn then test, 2021).

A stream sees many choices, and each may be wrong. So they share the allowed error:
number j takes 6 / (pi^2 j^2) of 1 - confidence, which sums to all of it, and the
confidence holds for all choices together. A narrower choice is taken only where what
the wider one trusts loses more than `error` in the mean; else it would close by
chance, as each choice is stricter than the one before. A new one comes only when
there are as many new answers as the last one rested on, or a full window of them, so
that they stay few.

Online, late exact answers say what the trusted ones lost. Their evidence against
"the mean loss is at most `error`" is a product of likelihood ratios that starts anew
whenever it falls below 1 (Page's CUSUM, 1954), so that without a violation a false
alarm comes less often than once in `_ALARM` trusted answers. At an alarm nothing is
trusted any more, and a new threshold is found from answers after the change only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.inference.learned.bounds import clopper_pearson, fewest, upper

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = -1.0  # the threshold that trusts nothing
_ALARM = 1000.0
_ONE_WRONG = 1.6  # answers that show a small share with one wrong, over with none
_LEAST = 1e-12  # of the allowed error, for one choice: 1 - it is still a float
_WORSE = 4.0  # the violation that the evidence is most sensitive to, over `error`


@dataclass(frozen=True)
class GateSettings:
    """How a gate is kept true.

    Attributes:
        error: the mean loss that trusted answers may have: of logits the share that
            disagrees with the model.
        confidence: with which the bounds hold for all choices of a stream together.
        window: answers with a known loss that are kept. More follow a change later and
            bound a small error better.
        every: the fewest new answers after which the threshold is chosen anew.
    """

    error: float = 0.005
    confidence: float = 0.95
    window: int = 6000
    every: int = 500

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise ConfigError(
                f"error is a share, at least 0 and below 1, got {self.error}"
            )
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"confidence must be between 0.5 and 1, got {self.confidence}"
            )
        if self.every < 1 or self.window < self.every:
            raise ConfigError(
                f"every must be at least 1 and at most window, got every={self.every}, "
                f"window={self.window}"
            )


class Gate:
    """A threshold on doubts.

    Attributes:
        threshold: an answer is trusted if its doubt is at most this; -1: none is.
        alarms: how often trusted answers were worse than allowed.
        seen: how many late exact answers were observed.
    """

    def __init__(self, grid: Sequence[float], settings: GateSettings) -> None:
        """Begins with trust in nothing.

        Args:
            grid: thresholds to choose from, rising; they must not come from the
                answers that the gate is calibrated on.
            settings: what trusted answers may lose.
        """
        self.settings = settings
        self.threshold = NOTHING
        self.alarms = 0
        self.seen = 0
        self._grid = np.unique(np.asarray(grid, dtype=float))
        self._doubts = np.empty(0)
        self._losses = np.empty(0)
        self._evidence = 1.0
        self._since = 0  # answers seen since the evidence last was 1
        self._waiting = 0
        self._choices = 0
        self._rested = 0  # answers that the last choice rested on

    def calibrate(self, doubts: np.ndarray, losses: np.ndarray) -> None:
        """Chooses the threshold by answers with a known loss, and keeps these."""
        self._keep(doubts, losses)
        self._choose()

    def observe(self, doubts: np.ndarray, losses: np.ndarray) -> None:
        """Takes what late exact answers say of earlier ones, in the order they came."""
        for i in range(len(doubts)):
            self.seen += 1
            self._waiting += 1
            self._keep(doubts[i : i + 1], losses[i : i + 1])
            self._weigh(float(doubts[i]), float(losses[i]))
            if self._waiting >= max(self.settings.every, self._rested):
                self._choose()

    def _weigh(self, doubt: float, loss: float) -> None:
        self._since += 1
        if doubt > self.threshold:
            return
        allowed = max(self.settings.error, 1e-9)
        worse = min(_WORSE * allowed, (1 + allowed) / 2)
        gain = loss * math.log(worse / allowed)
        gain += (1 - loss) * math.log1p(-worse) - (1 - loss) * math.log1p(-allowed)
        self._evidence *= math.exp(gain)
        if self._evidence >= _ALARM:
            self.alarms += 1
            self.threshold = NOTHING
            self._doubts = self._doubts[-self._since :]
            self._losses = self._losses[-self._since :]
            self._waiting = self._rested = 0
        if self._evidence >= _ALARM or self._evidence <= 1:
            self._evidence, self._since = 1.0, 0

    def _keep(self, doubts: np.ndarray, losses: np.ndarray) -> None:
        window = self.settings.window
        self._doubts = np.concatenate([self._doubts, doubts])[-window:]
        self._losses = np.concatenate([self._losses, losses])[-window:]

    def _choose(self) -> None:
        self._waiting, self._rested = 0, len(self._losses)
        self._choices += 1
        share = 6 / (math.pi * self._choices) ** 2
        wrong = max((1 - self.settings.confidence) * share, _LEAST)
        found = self._largest(1 - wrong)
        trusted = self._losses[self._doubts <= self.threshold]
        kept = len(trusted) and float(trusted.mean()) <= self.settings.error
        if found > self.threshold or not kept:
            self.threshold = found

    def _largest(self, confidence: float) -> float:
        """Returns the last threshold of the sequence that the bound allows."""
        error = self.settings.error
        found = NOTHING
        if error <= 0:
            return found
        # The first test allows for one wrong answer if there are enough of them.
        needed = fewest(error, confidence)
        if clopper_pearson(1, len(self._losses), confidence) <= error:
            needed = math.ceil(_ONE_WRONG * needed)
        for threshold in self._grid.tolist():
            trusted = self._losses[self._doubts <= threshold]
            if len(trusted) < needed:
                continue
            if upper(trusted, confidence) > error:
                break
            found = threshold
        return found

    def state(self) -> dict[str, Any]:
        """Returns what `restored` takes: numbers and lists."""
        return {
            "settings": vars(self.settings),
            "threshold": self.threshold,
            "alarms": self.alarms,
            "seen": self.seen,
            "grid": self._grid.tolist(),
            "doubts": self._doubts.tolist(),
            "losses": self._losses.tolist(),
            "evidence": [self._evidence, self._since, self._waiting],
            "choices": [self._choices, self._rested],
        }


def restored(state: dict[str, Any]) -> Gate:
    """Returns the gate that `Gate.state` describes."""
    gate = Gate(state["grid"], GateSettings(**state["settings"]))
    gate.threshold, gate.alarms = state["threshold"], state["alarms"]
    gate.seen = state["seen"]
    gate._doubts = np.asarray(state["doubts"], dtype=float)
    gate._losses = np.asarray(state["losses"], dtype=float)
    gate._evidence, gate._since, gate._waiting = state["evidence"]
    gate._choices, gate._rested = state["choices"]
    return gate
