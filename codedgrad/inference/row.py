"""A row of an evaluation: the sums of a part, and what tells that they fit together.

A row is float64, in lines of 16, since slices of owners begin at multiples of 16:

    [ model | data | 14 of the payload ]   one line; there are at least as many lines
    [ model | data | 14 of the payload ]   as workers, so that each owns a slice and
    [ model | data | ...               ]   sees what has arrived

    payload = need | length of the text | text | makers | sums of the metrics

*model* and *data* are digests (40 bits) of the weights and of all else that workers
must have in common, times the leaves of the tree below the row's node. In the decoded
row each is therefore leaves * digest, in every line, exactly if all rows came from
workers that agree: a wrong row cannot hide, whichever slice takes it. The *text* says
what the metrics are; the row of the first part carries it, so that a worker which has
computed nothing can read the sum. *makers* has a place for each part, with the number
of the worker whose row was taken; it is there if results are gathered.

*need* is 0, or the number of lines that a row would need. Where a sum is too large,
the worker sends a row of the root with it, which ends the step for all at once.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from codedgrad.inference import sums

if TYPE_CHECKING:
    from codedgrad.inference.sums import Schema, Values

    Row = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

LINE, _CHECKS = 16, 2
_PAYLOAD = LINE - _CHECKS
_PACKED = 6  # bytes of the text in one float64, exact
_DIGEST_BYTES = 5
_SEAL_BITS = 12
_HEAD = 2  # need, length of the text


@lru_cache(maxsize=16)
def digest40(text: str) -> int:
    """Returns 40 bits that follow from a text."""
    found = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
    return sealed(int.from_bytes(found, "little") >> _SEAL_BITS)


def sealed(bits: int) -> int:
    """Returns 28 bits with 12 more that follow from them.

    A mean of unlike numbers of this kind is none, but by chance.
    """
    seal = hashlib.blake2b(str(bits).encode(), digest_size=2).digest()
    low = int.from_bytes(seal, "little") & ((1 << _SEAL_BITS) - 1)
    return bits << _SEAL_BITS | low


class Marks(NamedTuple):
    """The two digests of a row, which all workers must share."""

    model: int
    data: int

    def with_metrics(self, text: str) -> Marks:
        """Returns the marks of rows whose metrics are those of a text."""
        return Marks(self.model, digest40(f"{self.data} {text}"))


def lines_for(schema: Schema, makers: int) -> int:
    """Returns the lines of a row with these metrics, and so many places for makers."""
    packed = -(-len(sums.text_of(schema).encode()) // _PACKED)
    count = _HEAD + packed + _makers(schema, makers) + sums.size_of(schema)
    return -(-count // _PAYLOAD)


def _makers(schema: Schema, parts: int) -> int:
    return 0 if all(entry.summed for entry in schema) else parts


class Format(NamedTuple):
    """How the rows of one evaluation are written and read.

    Attributes:
        lines: of a row.
        leaves: of the tree.
        parts: of the evaluation.
    """

    lines: int
    leaves: int
    parts: int

    def write(self, schema: Schema, values: Values, *, part: int, worker: int) -> Row:
        """Returns the payload of a part's row, [lines, 14]."""
        text = sums.text_of(schema).encode()
        packed = -(-len(text) // _PACKED)
        payload = np.zeros(self.lines * _PAYLOAD)
        if part == 0:
            payload[1] = len(text)
            payload[_HEAD : _HEAD + packed] = [
                int.from_bytes(text[i : i + _PACKED], "little")
                for i in range(0, len(text), _PACKED)
            ]
        makers = _makers(schema, self.parts)
        if makers:
            payload[_HEAD + packed + part] = worker + 1
        begin = _HEAD + packed + makers
        flat = sums.flatten(schema, values)
        payload[begin : begin + len(flat)] = flat
        return payload.reshape(self.lines, _PAYLOAD)

    def marked(self, payload: Row, marks: Marks, leaves: int) -> Row:
        """Returns a whole row, [lines * 16], of a node above so many leaves."""
        row = np.empty((self.lines, LINE))
        row[:, 0] = marks.model * leaves
        row[:, 1] = marks.data * leaves
        row[:, _CHECKS:] = payload
        return row.reshape(-1)

    def too_small(self, need: int, marks: Marks) -> Row:
        """Returns the root's row that asks for rows of `need` lines."""
        payload = np.zeros((self.lines, _PAYLOAD))
        payload[0, 0] = need
        # No row of sums has these marks: the two can never be taken for one another.
        asking = marks.with_metrics(f"need {need}")
        return self.marked(payload, asking, self.leaves)

    def read(self, row: Row) -> Decoded:
        """Takes a decoded row apart."""
        table = row.reshape(self.lines, LINE)
        return Decoded(self, table[:, :_CHECKS], table[:, _CHECKS:].reshape(-1))


class Decoded(NamedTuple):
    """A decoded row.

    Attributes:
        form: how it was written.
        checks: of every line, [lines, 2].
        payload: of all lines in a run.
    """

    form: Format
    checks: Row
    payload: Row

    @property
    def need(self) -> int:
        """The lines that rows need; 0: they are long enough."""
        return int(self.payload[0])

    def fits(self, marks: Marks) -> tuple[bool, bool]:
        """Returns whether all rows had these marks: of the model, and of the data."""
        wanted = np.array(marks, np.float64) * self.form.leaves
        same = (self.checks == wanted).all(axis=0)
        return bool(same[0]), bool(same[1])

    def alike(self) -> bool:
        """Returns whether all rows had the same marks, whichever these are."""
        first = self.checks[0]
        if np.fmod(first, self.form.leaves).any() or (self.checks != first).any():
            return False
        marks = [int(x) // self.form.leaves for x in first]
        return all(sealed(mark >> _SEAL_BITS) == mark for mark in marks)

    def text(self) -> str:
        """Returns the text that says what the metrics are; "" if it cannot be read."""
        length = self.payload[1]
        packed = -(-length // _PACKED)
        if not 0 < length <= _PACKED * (len(self.payload) - _HEAD):
            return ""
        words = self.payload[_HEAD : _HEAD + int(packed)]
        if not ((words >= 0) & (words < 256**_PACKED)).all():
            return ""
        data = b"".join(int(word).to_bytes(_PACKED, "little") for word in words)
        return data[: int(length)].decode(errors="replace")

    def makers(self, schema: Schema) -> list[int]:
        """Returns the worker whose row was taken of each part, if there are places."""
        begin = self._after_text(schema)
        places = self.payload[begin : begin + _makers(schema, self.form.parts)]
        return [int(place) - 1 for place in places]

    def sums(self, schema: Schema) -> Row:
        """Returns the sums of the metrics, as `sums.unflatten` takes them."""
        begin = self._after_text(schema) + _makers(schema, self.form.parts)
        return self.payload[begin : begin + sums.size_of(schema)]

    def _after_text(self, schema: Schema) -> int:
        return _HEAD + -(-len(sums.text_of(schema).encode()) // _PACKED)
