"""The latest reports of a run, in arrays of a bounded size.

A report is an object with a dictionary by worker; with 1,024 workers one takes about
100 KB. In arrays it takes 8 bytes for each worker and 8 for each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from codedgrad.monitor.report import StepReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {"int": "i8", "float": "f8", "bool": "?"}
_NUMBERS = [
    (f.name, _TYPES[str(f.type)]) for f in fields(StepReport) if f.type in _TYPES
]
_NAMES = [name for name, _ in _NUMBERS]
_numbers_of = attrgetter(*_NAMES)
_FIRST_ROWS = 64
_ARRIVALS_BYTES = 64 << 20


class ReportRing(Sequence[StepReport]):
    """A sequence of the latest reports, which are made anew when they are asked for."""

    def __init__(self, limit: int) -> None:
        """Start empty; keep at most `limit` reports, and fewer with many workers."""
        self._limit = limit
        self._count = 0  # of all reports so far
        self._numbers = np.zeros(0, dtype=_NUMBERS)
        self._arrivals = np.zeros((0, 0))  # seconds [rows, workers]; NaN: not arrived
        self._true_errors: dict[int, tuple[tuple[int, float], ...]] = {}  # by count

    def append(self, report: StepReport) -> None:
        """Add a report; the oldest one goes where there is no room."""
        workers = max(report.arrivals_s, default=-1) + 1
        if workers > self._arrivals.shape[1] or self._is_full():
            self._grow(max(workers, self._arrivals.shape[1]))
        place = self._count % len(self._numbers)
        self._numbers[place] = _numbers_of(report)
        row = self._arrivals[place]
        row[:] = np.nan
        for worker, seconds in report.arrivals_s.items():
            row[worker] = seconds
        if report.true_errors:
            self._true_errors[self._count] = report.true_errors
        self._count += 1
        self._true_errors.pop(self._count - 1 - len(self._numbers), None)

    def clear(self) -> None:
        """Forget all reports, as `list.clear` does."""
        self._count = 0
        self._numbers, self._arrivals = self._numbers[:0], self._arrivals[:0]
        self._true_errors.clear()

    def __len__(self) -> int:
        """Return the number of reports that are kept."""
        return min(self._count, len(self._numbers))

    @overload
    def __getitem__(self, index: int) -> StepReport: ...

    @overload
    def __getitem__(self, index: slice) -> list[StepReport]: ...

    def __getitem__(self, index: int | slice) -> StepReport | list[StepReport]:
        """Return a report, or a list of some; 0 is the oldest one that is kept."""
        if isinstance(index, slice):
            return [self._report(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._report(index % len(self))

    def arrivals(self, workers: int) -> NDArray[np.float64]:
        """Return arrivals in seconds [reports, workers], NaN where there is none."""
        out = np.full((len(self), workers), np.nan)
        width = min(workers, self._arrivals.shape[1])
        out[:, :width] = self._arrivals[self._order(), :width]
        return out

    def numbers(self, name: str) -> NDArray[Any]:
        """Return the values of a field that is a number, in the order of the steps."""
        return self._numbers[name][self._order()]

    def _order(self) -> NDArray[np.int64]:
        """Return the places of the reports, the oldest first."""
        first = self._count - len(self)
        return np.arange(first, self._count) % max(1, len(self._numbers))

    def _report(self, index: int) -> StepReport:
        number = self._count - len(self) + index
        place = number % len(self._numbers)
        row = self._arrivals[place]
        values: dict[str, Any] = dict(
            zip(_NAMES, self._numbers[place].tolist(), strict=True)
        )
        return StepReport(
            arrivals_s={int(w): float(row[w]) for w in np.flatnonzero(~np.isnan(row))},
            true_errors=self._true_errors.get(number, ()),
            **values,
        )

    def _is_full(self) -> bool:
        rows = len(self._numbers)
        return self._count >= rows and rows < self._most(self._arrivals.shape[1])

    def _most(self, workers: int) -> int:
        return max(1, min(self._limit, _ARRIVALS_BYTES // (8 * max(1, workers))))

    def _grow(self, workers: int) -> None:
        """Make room for more reports, up to the limit, or for more workers."""
        order = self._order()
        rows = min(max(2 * len(order), _FIRST_ROWS), self._most(workers))
        order = order[max(0, len(order) - rows) :]
        numbers = np.zeros(rows, dtype=_NUMBERS)
        arrivals = np.full((rows, workers), np.nan)
        # A report lies at its number, modulo the number of rows.
        places = np.arange(self._count - len(order), self._count) % rows
        numbers[places] = self._numbers[order]
        arrivals[places, : self._arrivals.shape[1]] = self._arrivals[order]
        self._numbers, self._arrivals = numbers, arrivals
