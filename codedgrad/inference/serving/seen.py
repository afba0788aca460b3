"""What was seen of the times of passes and answers, and what follows from it."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict, deque
from statistics import median
from typing import Any

from torch import Tensor

Shape = tuple[Any, ...]

_SHAPES, _TIMES = 256, 32  # kept: shapes, and times of a worker for a shape
_LOOKED_AT = 32  # shapes, for one that was not seen
_WARM_UP = 20  # exact answers until a quantile is trusted
_MOST = 10.0  # a deadline is at most so many times the longest exact answer seen
_STEP = 0.1  # of the logarithm of a deadline, per answer
_RECENT = 8  # answers by which a worker judges whether it is slow itself


def shape_of(inputs: tuple[Any, ...]) -> Shape:
    """Return what inputs must have in common to take about the same time."""
    return tuple(
        (tuple(one.shape), one.dtype) if isinstance(one, Tensor) else type(one)
        for one in inputs
    )


def _kind(shape: Shape) -> tuple[Any, ...]:
    """Return what shapes have in common whose times say something of one another."""
    return tuple(
        (len(one[0]), one[1]) if isinstance(one, tuple) else one for one in shape
    )


def _elements(shape: Shape) -> int:
    return sum(math.prod(one[0]) for one in shape if isinstance(one, tuple))


class Seen:
    """How long passes take, by shape and worker.

    A shape that was not seen takes as long as the seen one that is nearest in size, or
    longer as it is larger: else queries of ever new lengths would be news for ever.
    """

    def __init__(self, rank: int) -> None:
        """Begin without any."""
        self._rank = rank
        self._lock = threading.Lock()
        self._times: OrderedDict[Shape, dict[int, deque[float]]] = OrderedDict()
        self._by_others: deque[bool] = deque(maxlen=_RECENT)

    def note(self, shape: Shape, worker: int, seconds: float) -> None:
        """Hear how long a pass of a worker took."""
        with self._lock:
            by_worker = self._times.setdefault(shape, {})
            self._times.move_to_end(shape)
            if len(self._times) > _SHAPES:
                self._times.popitem(last=False)
            by_worker.setdefault(worker, deque(maxlen=_TIMES)).append(seconds)

    def usual_s(self, shape: Shape) -> float | None:
        """Return how long a pass takes on the fastest worker; None: not known.

        The fastest one's is taken, because a worker that is always slow would find its
        own time usual.
        """
        with self._lock:
            near = self._near(shape)
            if near is None:
                return None
            ratio = _elements(shape) / max(1, _elements(near))
            return max(1.0, ratio) * min(map(median, self._times[near].values()))

    def knows_others(self, shape: Shape) -> bool:
        """Return whether the time of another worker is known."""
        with self._lock:
            near = self._near(shape)
            return near is not None and any(w != self._rank for w in self._times[near])

    def passes(self, shape: Shape) -> int:
        """Return how many times of this worker are kept."""
        with self._lock:
            near = self._near(shape)
            return 0 if near is None else len(self._times[near].get(self._rank, ()))

    def _near(self, shape: Shape) -> Shape | None:
        """Return the shape, or of the last ones seen the nearest in size."""
        if shape in self._times:
            return shape
        kind, size = _kind(shape), _elements(shape)
        last = itertools.islice(reversed(self._times), _LOOKED_AT)
        like = [one for one in last if _kind(one) == kind]
        return min(like, key=lambda one: abs(_elements(one) - size), default=None)

    def answered(self, who: int) -> None:
        """Hear whose exact answer was the first."""
        self._by_others.append(who != self._rank)

    def slow_itself(self) -> bool:
        """Return whether others were first with half of the last answers."""
        return 2 * sum(self._by_others) >= _RECENT


class Deadline:
    """The seconds that a share q of the exact answers takes, learned online.

    It starts as that quantile of the first answers. Then each answer moves it by

        log d  <-  log d + step * (q - [the answer came within d])

    which stands still where the share q comes in time. Answers that were not waited
    for count as late, so nothing has to be known of how late they would have come.
    """

    def __init__(self, quantile: float) -> None:
        """Begin without any answer; the deadline is infinite."""
        self._quantile = quantile
        self._lock = threading.Lock()
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_SHAPES)  # exact ones
        self.seconds = math.inf

    def note(self, seconds: float, at_s: float, *, exact: bool) -> None:
        """Hear of an answer, and of the deadline that was its own."""
        with self._lock:
            if len(self._first) < _WARM_UP:
                self._first.append(seconds)
                self._last.append(seconds)
                if len(self._first) == _WARM_UP:
                    place = min(int(self._quantile * _WARM_UP), _WARM_UP - 1)
                    self.seconds = sorted(self._first)[place]
                return
            if exact:
                self._last.append(seconds)
            in_time = exact and seconds <= at_s
            # Many that were late together say it once: the deadline has moved since.
            if at_s > self.seconds if in_time else at_s < self.seconds:
                return
            if at_s == math.inf:  # it came before there was a deadline
                return
            moved = self.seconds * math.exp(_STEP * (self._quantile - in_time))
            most = _MOST * max(self._last, default=math.inf)
            self.seconds = min(moved, max(most, self.seconds if in_time else 0.0))
