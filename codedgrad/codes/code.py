"""A code: who may compute what, in which order, and which rows are sent."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codedgrad.codes.dual import Dual
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from codedgrad.codes.tree import SumTree

_CACHED = 1024  # arrival sets remembered by decode
_DENSE_LIMIT = 50_000_000  # entries of matrix()
_TOLERANCE = 1e-8  # |1 - a^T B_S| below this is a cover


class Row(NamedTuple):
    """One coded message, m = sum_i coefficients[i] * value(work[items[i]])."""

    after: int
    items: tuple[int, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Decoding:
    """How the batch's sum is formed from arrivals.

    Attributes:
        weights: float64 [rows], 0 for rows that are not used.
        deficit: float64 [parts], 1 - a^T B_S; 0 where the arrivals cover.
    """

    weights: NDArray[np.float64]
    deficit: NDArray[np.float64]

    @property
    def covers(self) -> bool:
        """True when the arrivals give the whole sum."""
        return bool(np.abs(self.deficit).max(initial=0.0) < _TOLERANCE)


@dataclass(frozen=True, eq=False)
class Code:
    """Assignment and rows of a gradient code, frozen and hashable by content.

    Attributes:
        name: family.
        parameters: (name, value) pairs that made it.
        workers: n.
        shards: k.
        micro: m, micro-batches of a shard; part g = shard * m + micro-batch.
        tree: the order of summation over the k * m parts.
        work: per worker, tree nodes in the order in which it may compute them.
        required: per worker, how many leading entries of `work` it computes without
            waiting; the rest only past its patience, if they have not arrived.
        rows: per worker, the messages.
        linear: False when each row is one node with coefficient 1, so that decoding
            is selection and bit-exact; True for general coefficients.
    """

    name: str
    parameters: tuple[tuple[str, int | float | str], ...]
    workers: int
    shards: int
    micro: int
    tree: SumTree
    work: tuple[tuple[int, ...], ...]
    required: tuple[int, ...]
    rows: tuple[tuple[Row, ...], ...]
    linear: bool = False
    stragglers: int | None = None
    _cache: OrderedDict[bytes, Decoding] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Check everything."""
        self.validate()

    @property
    def parts(self) -> int:
        """Micro-batches of a step, k * m."""
        return self.shards * self.micro

    @property
    def row_count(self) -> int:
        """Rows of all workers."""
        return int(self._row_starts[-1])

    def row_index(self, worker: int, row: int) -> int:
        """Number of a worker's row, counted worker by worker."""
        return int(self._row_starts[worker]) + row

    def row_owner(self, row_id: int) -> tuple[int, int]:
        """(worker, row) of a row's number."""
        if not 0 <= row_id < self.row_count:
            raise ConfigError(f"the code has {self.row_count} rows, no row {row_id}")
        worker = int(np.searchsorted(self._row_starts, row_id, side="right")) - 1
        return worker, row_id - int(self._row_starts[worker])

    @cached_property
    def _row_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(rows) for rows in self.rows)])

    @cached_property
    def _row_nodes(self) -> NDArray[np.int64]:
        """The tree node of every row of a selection code."""
        owners = [(w, r) for w, rows in enumerate(self.rows) for r in range(len(rows))]
        return np.array([self.row_node(w, r) for w, r in owners], np.int64)

    def row_node(self, worker: int, row: int) -> int:
        """The tree node that a row of a selection code carries."""
        return self.work[worker][self.rows[worker][row].items[0]]

    def matrix(self) -> NDArray[np.float64]:
        """B, float64 [rows, parts]: the parts' coefficients in every row."""
        if self.row_count * self.parts > _DENSE_LIMIT:
            raise ConfigError(
                f"the matrix of {self.describe()} would have "
                f"{self.row_count * self.parts} entries; use decode()"
            )
        b = np.zeros((self.row_count, self.parts))
        index = 0
        for worker, rows in enumerate(self.rows):
            for row in rows:
                for item, c in zip(row.items, row.coefficients, strict=True):
                    node = self.work[worker][item]
                    b[index, self.tree.start[node] : self.tree.stop[node]] += c
                index += 1
        return b

    def tolerance(self) -> int:
        """Largest s such that the loss of any s workers still leaves a cover."""
        if self.stragglers is not None:
            return self.stragglers
        holders: list[set[int]] = [set() for _ in range(self.parts)]
        for worker, rows in enumerate(self.rows):
            for i in range(len(rows)):
                node = self.row_node(worker, i)
                for part in range(self.tree.start[node], self.tree.stop[node]):
                    holders[part].add(worker)
        return min(len(h) for h in holders) - 1

    def decode(self, arrived: NDArray[np.bool_] | Iterable[int]) -> Decoding:
        """Weights and deficit for an arrival set, cached.

        Args:
            arrived: bool [rows], or the numbers of the rows that have arrived.
        """
        mask = self._mask(arrived)
        key = mask.tobytes()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        decoding = self._solve(mask) if self.linear else self._select(mask)
        self._cache[key] = decoding
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return decoding

    def decode_reference(self, arrived: NDArray[np.bool_] | Iterable[int]) -> Decoding:
        """As `decode`, by least squares on the dense matrix; slow."""
        mask = self._mask(arrived)
        b = self.matrix()[mask]
        weights = np.zeros(self.row_count)
        if len(b):
            weights[mask] = np.linalg.lstsq(b.T, np.ones(self.parts), rcond=1e-10)[0]
        return Decoding(weights, np.ones(self.parts) - weights[mask] @ b)

    def _mask(self, arrived: NDArray[np.bool_] | Iterable[int]) -> NDArray[np.bool_]:
        if isinstance(arrived, np.ndarray) and arrived.dtype == np.bool_:
            if arrived.shape != (self.row_count,):
                raise ConfigError(
                    f"arrived must be bool [{self.row_count}], got {arrived.shape}"
                )
            return arrived
        mask = np.zeros(self.row_count, bool)
        mask[list(arrived)] = True
        return mask

    def _solve(self, mask: NDArray[np.bool_]) -> Decoding:
        few = 2 * np.count_nonzero(mask) < len(mask)  # a small system as it is
        found = None if few else self.dual.decode(mask)
        return self.decode_reference(mask) if found is None else Decoding(*found)

    @cached_property
    def dual(self) -> Dual:
        """What depends on the code alone in decoding general coefficients."""
        return Dual(self.matrix())

    @cached_property
    def _rows_by_span(self) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(span, rows, their first parts), the largest span first."""
        start = self.tree.start[self._row_nodes].astype(np.int64)
        span = self.tree.stop[self._row_nodes] - start
        groups = ((int(x), np.flatnonzero(span == x)) for x in np.unique(span)[::-1])
        return [(size, rows, start[rows]) for size, rows in groups]

    def _select(self, mask: NDArray[np.bool_]) -> Decoding:
        """Largest arrived nodes first; each part is taken once, from the first row."""
        weights = np.zeros(self.row_count)
        deficit = np.ones(self.parts)
        taken_from = np.empty(self.parts, np.int64)
        for span, rows, start in self._rows_by_span:
            # Nodes are nested or apart: of a part not taken, nothing of the span is.
            usable = np.flatnonzero(mask[rows] & (deficit[start] != 0.0))[::-1]
            first = start[usable]
            taken_from[first] = rows[usable]  # of several the last one written stays
            weights[taken_from[first]] = 1.0
            deficit[(first[:, None] + np.arange(span)).ravel()] = 0.0
        return Decoding(weights, deficit)

    def fingerprint(self) -> str:
        """SHA-256 of all that the code is."""
        h = hashlib.sha256()
        head = (
            self.name,
            self.parameters,
            self.workers,
            self.shards,
            self.micro,
            self.work,
            self.required,
            self.linear,
        )
        h.update(repr(head).encode())
        for array in (self.tree.left, self.tree.right):
            h.update(array.tobytes())
        for rows in self.rows:
            for row in rows:
                h.update(repr((row.after, row.items)).encode())
                h.update(np.asarray(row.coefficients, np.float64).tobytes())
        return h.hexdigest()

    def __hash__(self) -> int:
        """By content."""
        return int(self.fingerprint()[:15], 16)

    def __eq__(self, other: object) -> bool:
        """By content."""
        return isinstance(other, Code) and self.fingerprint() == other.fingerprint()

    def describe(self) -> str:
        """One line."""
        settings = ", ".join(f"{k}={v}" for k, v in self.parameters)
        return (
            f"{self.name}(workers={self.workers}{', ' if settings else ''}{settings})"
        )

    def validate(self) -> None:
        """Raise ConfigError where the fields do not fit each other."""
        n = self.workers
        if n < 1 or not len(self.work) == len(self.required) == len(self.rows) == n:
            raise ConfigError(
                f"work, required and rows must have one entry for each of {n} workers"
            )
        if self.tree.parts != self.parts:
            raise ConfigError(
                f"the tree has {self.tree.parts} parts, the code {self.parts}"
            )
        covered = np.zeros(self.parts, bool)
        for worker in range(n):
            self._validate_worker(worker)
            for node in self.work[worker][: self.required[worker]]:
                covered[self.tree.start[node] : self.tree.stop[node]] = True
        if not covered.all():
            raise ConfigError(
                f"{self.describe()} cannot decode with nobody late: nobody is required "
                f"to compute part(s) {np.flatnonzero(~covered).tolist()[:8]}"
            )

    def _validate_worker(self, worker: int) -> None:
        work, required = self.work[worker], self.required[worker]
        if not 0 <= required <= len(work):
            raise ConfigError(
                f"worker {worker} is required to do {required} of {len(work)} items"
            )
        if any(not 0 <= node < len(self.tree) for node in work):
            raise ConfigError(f"worker {worker} has work outside the summation tree")
        for row in self.rows[worker]:
            fits = 0 <= row.after < len(work) and len(row.items) == len(
                row.coefficients
            )
            if not fits or any(not 0 <= i <= row.after for i in row.items):
                raise ConfigError(
                    f"worker {worker} sends a row of items {row.items} after item "
                    f"{row.after} of {len(work)}; rows combine finished items only"
                )
