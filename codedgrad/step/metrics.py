"""Metrics that a loss function returns beside its loss, for the whole step.

    return loss, {"accuracy": right.float().mean(), "right": right.sum()}

A pass notes its metrics in the tail of its row (`codedgrad.row.metrics`), so each
micro-batch counts once, whoever computed it, and all workers read the same values from
the decoded sum. The row holds a digest of the names. Where a digest comes for the first
time, all workers name it to one another, because one that is slow may not have ended a
pass yet. All see the same digests in the same steps.
"""

from __future__ import annotations

import json
import math
import numbers
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError, NonFiniteError
from codedgrad.job import agreement
from codedgrad.job.runtime import DISAGREE
from codedgrad.row import checks, metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.job.runtime import Runtime
    from codedgrad.row.payload import Payload

_PRESENT = 1 << (checks.BITS - 1)  # set in every word but that of no metrics
_MOST_SETS = 64
_WANTED = "wanted a number, or a tensor of one number"
_MEAN, _COUNT = "mean", "count"

Names = tuple[tuple[str, str], ...]  # (name, _MEAN or _COUNT), sorted


class Returned(NamedTuple):
    """The metrics of one pass.

    Attributes:
        names: name and kind of each, sorted.
        values: their values, in this order.
        eps: the relative precision of each.
    """

    names: Names
    values: list[Any]
    eps: list[float]


def metrics_of(returned: Mapping[Any, Any], place: str) -> Returned:
    """Returns the metrics in what a loss function has returned; reads no device.

    Args:
        returned: numbers by name. Floating-point ones are means over the pass, integer
            and boolean ones are counts.
        place: where in the training that was, for error messages.

    Raises:
        ConfigError: a name is no text, a value is no number, or there are too many.
    """
    if len(returned) > metrics.MOST:
        raise ConfigError(
            f"the loss function returned {len(returned)} metrics in {place}; a row "
            f"has room for {metrics.MOST}"
        )
    names, values, precisions = [], [], []
    for name in returned:
        if not isinstance(name, str):
            raise ConfigError(f"a metric of {place} is called {name!r}; wanted a text")
    for name in sorted(returned):
        value = returned[name]
        kind, eps = _kind(value, f"the metric {name!r} of {place}")
        names.append((name, kind))
        values.append(value.detach() if isinstance(value, Tensor) else value)
        precisions.append(eps)
    return Returned(tuple(names), values, precisions)


def _kind(value: Any, what: str) -> tuple[str, float]:
    """Returns whether a value is a mean or a count, and its relative precision."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if math.prod(value.shape) != 1:
            raise ConfigError(f"{what} has the shape {tuple(value.shape)}; {_WANTED}")
        known = isinstance(value, Tensor) or value.dtype.kind in "biuf"
        if known and not (isinstance(value, Tensor) and value.is_complex()):
            tensor = (
                value
                if isinstance(value, Tensor)
                else torch.from_numpy(np.atleast_1d(np.asarray(value)))
            )
            if tensor.is_floating_point():
                return _MEAN, 2.0 * torch.finfo(tensor.dtype).eps
            return _COUNT, 0.0
    elif isinstance(value, numbers.Integral):
        return _COUNT, 0.0
    elif isinstance(value, numbers.Real):
        return _MEAN, 2.0 * torch.finfo(torch.float64).eps
    raise ConfigError(f"{what} is a {type(value).__name__}; {_WANTED}")


def word_of(names: Names) -> int:
    """Returns the digest of names and kinds, of `checks.BITS` bits."""
    if not names:
        return 0
    return zlib.crc32(json.dumps(names).encode()) & (_PRESENT - 1) | _PRESENT


class Metrics:
    """Notes the metrics of this worker's passes, and reads those of a step."""

    def __init__(self, payload: Payload, *, finite: bool) -> None:
        """Begin without any; with `finite` one that is not finite is refused."""
        self._payload = payload
        self._finite = finite
        self._seen: dict[int, Names] = {}  # by word, of passes of this worker
        self._known: dict[int, Names] = {}  # by word, named by all to all
        self._step: tuple[int, set[Names]] = (-1, set())  # of the passes of a step

    def nothing(self) -> None:
        """Note that the pass to come has no metrics, because it has no samples."""
        self._payload.tail.measure(None)

    def note(
        self, returned: Returned | None, weight: float, step: int, place: str
    ) -> None:
        """Write the metrics of a pass into the tail; waits once for their device.

        Args:
            returned: what the loss function gave; None: a loss alone.
            weight: the weight of the pass: its samples, or what the function said.
            step: the step's number.
            place: where in the training that is, for error messages.

        Raises:
            NonFiniteError: a metric is NaN, infinite or beyond the range of a row.
        """
        names = () if returned is None else returned.names
        if self._step[0] != step:
            self._step = step, set()
        self._step[1].add(names)
        if returned is None or not names:
            self._payload.tail.measure(None)
            return
        word = word_of(names)
        self._seen[word] = names
        contributions = []
        readings = self._numbers(returned.values)
        for (name, kind), number, eps in zip(
            names, readings, returned.eps, strict=True
        ):
            if kind == _MEAN:
                number = metrics.rounded(number * weight, eps) if weight else 0.0
            self._check(name, number, place)
            contributions.append(number)
        self._payload.tail.measure(metrics.elements(word, weight, contributions))

    def _numbers(self, values: list[Any]) -> list[float]:
        """Returns the values, all tensors on the model's device by one copy."""
        layout = self._payload.layout
        if layout.on_host:
            return [float(v) for v in values]
        there = [isinstance(v, Tensor) and v.device == layout.device for v in values]
        far = [
            v.reshape(()).double() for v, on in zip(values, there, strict=True) if on
        ]
        read = iter(torch.stack(far).tolist() if far else ())
        return [
            next(read) if on else float(v) for v, on in zip(values, there, strict=True)
        ]

    def _check(self, name: str, number: float, place: str) -> None:
        largest = torch.finfo(self._payload.layout.dtype).max
        if self._finite and not abs(number) <= largest:
            raise NonFiniteError(
                f"the metric {name!r} of {place} is not finite; leave it out, or "
                f"give a number: where there is nothing to measure, return "
                f"(loss, weight, metrics) with weight 0, or a count of its own"
            )

    def read(self, tail: NDArray[Any], step: int, job: Runtime) -> dict[str, float]:
        """Return the metrics of a step, by name, the same on every worker.

        Args:
            tail: of the decoded sum, on the CPU.
            step: the step's number.
            job: all workers, who compare names where that is needed.

        Raises:
            MismatchError: passes of the step had metrics of other names or kinds.
        """
        area = tail[self._payload.layout.metric_area]
        if metrics.none(area):
            return {}
        sums = metrics.read(area)
        if sums.words is None or sums.words.ones == 0:
            return {}
        if sums.words.disputed:
            raise self._disagreement(step, job)
        word = sums.words.ones
        if word not in self._known:
            self._known[word] = self._named(word, step, job)
        found = {}
        for (name, kind), value in zip(self._known[word], sums.values, strict=False):
            if kind == _MEAN:
                value = value / sums.weight if sums.weight else math.nan
            found[name] = value
        return found

    def _named(self, word: int, step: int, job: Runtime) -> Names:
        """Return the names of a word that is new to all. Collective."""
        mine = self._seen.get(word, ())
        blobs = job.gather(
            json.dumps(mine).encode(), f"to name the metrics of step {step}"
        )
        named = {_names(blob) for blob in blobs} - {()}
        if len(named) != 1:
            raise self._disagreement(step, job)
        if len(self._known) == _MOST_SETS:
            raise agreement.everywhere(
                job,
                f"{DISAGREE}metrics: step {step} brings the set of names number "
                f"{_MOST_SETS + 1}; return the same names in every step",
            )
        return named.pop()

    def _disagreement(self, step: int, job: Runtime) -> Exception:
        """Return the error that says who returned what. Collective."""
        own = sorted(self._step[1]) if self._step[0] == step else []
        blobs = job.gather(
            json.dumps(own).encode(), f"to compare the metrics of step {step}"
        )
        texts = [
            f"{job.unit} {worker} returned {' and '.join(map(_shown, sets))}"
            for worker, blob in enumerate(blobs)
            if (sets := [_tuples(one) for one in json.loads(blob)])
        ]
        return agreement.everywhere(
            job,
            f"{DISAGREE}metrics of step {step}: {'; '.join(texts)}. Return the same "
            f"names in all passes of a step, each always as a float (a mean over the "
            f"pass) or always as an integer (a count)",
        )


def _names(blob: bytes) -> Names:
    return _tuples(json.loads(blob))


def _tuples(pairs: Any) -> Names:
    return tuple((str(name), str(kind)) for name, kind in pairs)


def _shown(names: Names) -> str:
    return ", ".join(f"{n!r} (a {kind})" for n, kind in names) or "no metric"
