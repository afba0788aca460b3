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

_CACHED = 1024  # arrival sets that decode remembers
_DENSE_LIMIT = 50_000_000  # entries of matrix()
_TOLERANCE = 1e-8  # |1 - a^T B_S| below this is a cover


class Row(NamedTuple):
    """One coded message, m = sum_i coefficients[i] * value(work[items[i]]).

    Attributes:
        after: the item of the worker's list after which the message is sent.
        items: the finished items that it combines.
        coefficients: one for each of the items.
    """

    after: int
    items: tuple[int, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Decoding:
    """How the batch's sum is formed from arrivals.

    Attributes:
        weights: a, float64 [rows]; 0 for rows that are not used.
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
        name: name of the family.
        parameters: (name, value) pairs that the family was called with.
        workers: n, number of workers.
        shards: k, number of shards.
        micro: m, micro-batches of a shard; part g is shard * m + micro-batch.
        tree: the order of summation over the k * m parts.
        work: for each worker, tree nodes in the order in which it may compute them.
        required: for each worker, how many leading entries of `work` it computes
            without waiting; it computes the rest only past its patience and only if
            they have not arrived.
        rows: for each worker, its messages.
        linear: False if each row is one node with coefficient 1, so that decoding is
            selection and exact to the bit; True for general coefficients.
        stragglers: s, workers whose loss still leaves a cover; None if `tolerance` can
            count it from the rows.
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
        """Check all fields; see `validate`."""
        self.validate()

    @property
    def parts(self) -> int:
        """Number of micro-batches of a step, k * m."""
        return self.shards * self.micro

    @property
    def row_count(self) -> int:
        """Number of rows of all workers together."""
        return int(self._row_starts[-1])

    def row_index(self, worker: int, row: int) -> int:
        """Return the number of a worker's row, counted worker by worker."""
        return int(self._row_starts[worker]) + row

    def row_owner(self, row_id: int) -> tuple[int, int]:
        """Return the (worker, row) that a row's number stands for."""
        if not 0 <= row_id < self.row_count:
            raise ConfigError(f"the code has {self.row_count} rows, no row {row_id}")
        worker = int(np.searchsorted(self._row_starts, row_id, side="right")) - 1
        return worker, row_id - int(self._row_starts[worker])

    @cached_property
    def _row_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(rows) for rows in self.rows)])

    @cached_property
    def _row_nodes(self) -> NDArray[np.int64]:
        """The tree node of every row of a selection code, by the row's number."""
        owners = [(w, r) for w, rows in enumerate(self.rows) for r in range(len(rows))]
        return np.array([self.row_node(w, r) for w, r in owners], np.int64)

    def row_node(self, worker: int, row: int) -> int:
        """Return the tree node that a row of a selection code carries."""
        return self.work[worker][self.rows[worker][row].items[0]]

    def matrix(self) -> NDArray[np.float64]:
        """Return B, float64 [rows, parts]: the parts' coefficients in every row."""
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
        """Return the largest s such that the loss of any s workers leaves a cover."""
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
        """Return weights and deficit for an arrival set; results are cached.

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
        """Decode as `decode` does, slowly, by least squares on the dense matrix."""
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
        few = 2 * np.count_nonzero(mask) < len(mask)  # then least squares is small
        found = None if few else self.dual.decode(mask)
        return self.decode_reference(mask) if found is None else Decoding(*found)

    @cached_property
    def dual(self) -> Dual:
        """The part of decoding general coefficients that depends on the code alone."""
        return Dual(self.matrix())

    @cached_property
    def _rows_by_span(self) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Tuples (span, rows, first parts of the rows), the largest span first."""
        start = self.tree.start[self._row_nodes].astype(np.int64)
        span = self.tree.stop[self._row_nodes] - start
        groups = ((int(x), np.flatnonzero(span == x)) for x in np.unique(span)[::-1])
        return [(size, rows, start[rows]) for size, rows in groups]

    def _select(self, mask: NDArray[np.bool_]) -> Decoding:
        """Take each part once, from the largest node that has arrived with it.

        Among several rows with the same node the first one is taken.
        """
        weights = np.zeros(self.row_count)
        deficit = np.ones(self.parts)
        taken_from = np.empty(self.parts, np.int64)
        for span, rows, start in self._rows_by_span:
            # Nodes are nested or apart. Where the first part of a node is not taken
            # yet, none of its parts is.
            usable = np.flatnonzero(mask[rows] & (deficit[start] != 0.0))[::-1]
            first = start[usable]
            taken_from[first] = rows[usable]  # among equal nodes the last write stays
            weights[taken_from[first]] = 1.0
            deficit[(first[:, None] + np.arange(span)).ravel()] = 0.0
        return Decoding(weights, deficit)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all that the code consists of."""
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
        """Hash the content."""
        return int(self.fingerprint()[:15], 16)

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        return isinstance(other, Code) and self.fingerprint() == other.fingerprint()

    def describe(self) -> str:
        """Return the family and its settings in one line."""
        settings = ", ".join(f"{k}={v}" for k, v in self.parameters)
        return (
            f"{self.name}(workers={self.workers}{', ' if settings else ''}{settings})"
        )

    def validate(self) -> None:
        """Raise ConfigError if the fields do not fit each other."""
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
