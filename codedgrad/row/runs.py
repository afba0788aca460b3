"""The runs of a row that one kernel call writes, and where their gradients lie now.

A run is what of one or several buckets is multiplied by the weight of the pass, or what
is not (its metrics). A kernel of any device wants the table of the run: for each span
address, elements and type of its values. `Run.found` finds all of them in one call
(csrc/bindings/tensors.cpp) where the gradients lie in memory as in the row, which torch
sees to. `leaf` does it one by one, and copies the gradients that lie otherwise.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.ops.library import NAMES, kernels
from codedgrad.row.spans import METRICS, Span, alike, dense, spans

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.row.payload import Payload

# Address, elements and type of the values of a span; address 0 means zeros.
Leaf = list[tuple[int, int, str]]


class Run(NamedTuple):
    """Spans that are written by one call.

    `place` is their first element in a row, `weighed` whether they are multiplied by
    the weight, `wire` the type to which they are rounded, "" for none, `parameters` are
    those in them, and `found` is what finds their gradients in one call, None if that
    cannot be done.
    """

    spans: list[Span]
    place: int
    weighed: bool
    wire: str
    parameters: list[Tensor]
    found: Any

    @property
    def elements(self) -> int:
        """The number of elements."""
        return sum(span.length for span in self.spans)


class Runs:
    """The runs of one payload's rows."""

    def __init__(self, payload: Payload) -> None:
        """Find out what lies in each bucket."""
        layout = self._layout = payload.layout
        self._tail = payload.tail
        self._spans = spans(layout)
        self._bounds = list(itertools.pairwise(layout.bucket_starts))
        self._parameters = layout.parameters
        self._sizes = [p.numel() for p in layout.parameters]
        self._strides = [layout.strides(i) for i in range(len(layout.parameters))]
        self._type, self._itemsize = NAMES[layout.dtype], layout.dtype.itemsize
        self._known: dict[tuple[int, int, bool], list[Run]] = {}

    def of(self, first: int, until: int) -> list[Run]:
        """Returns the runs of the buckets from `first` to before `until`.

        They are kept for the next time, and all have one rounding if the buckets do.
        """
        measured = self._tail.measured
        runs = self._known.get((first, until, measured))
        if runs is None:
            inside = [s for spans in self._spans[first:until] for s in spans]
            runs, place = [], self._bounds[first][0]
            for spans, weighed in zip(self._split(inside), (True, False), strict=True):
                if spans:
                    wire = self._layout.wire_at(place)
                    name = "" if wire is None else NAMES[wire]
                    found = self._finder(spans)
                    runs.append(Run(spans, place, weighed, name, *found))
                    place += runs[-1].elements
            self._known[first, until, measured] = runs
        return runs

    def _split(self, inside: list[Span]) -> tuple[list[Span], list[Span]]:
        """Returns the spans that are multiplied by the weight, and the other ones."""
        if not self._tail.measured:
            return inside, []
        metrics = [span for span in inside if span.parameter == METRICS]
        return inside[: len(inside) - len(metrics)], metrics

    def _finder(self, spans: list[Span]) -> tuple[list[Tensor], Any]:
        """Returns what finds the spans' gradients in one call, None if torch cannot.

        The parameters whose gradients are asked for come first.
        """
        if not objects.EXCHANGE:
            return [], None
        inside = sorted({span.parameter for span in spans if span.parameter >= 0})
        at = {index: place for place, index in enumerate(inside)}
        kinds = [(self._sizes[i], list(self._strides[i])) for i in inside]
        table = [(at.get(index, -1), *rest) for index, *rest in spans]
        found = kernels("_ops").Gradients(table, kinds)
        return [self._parameters[i] for i in inside], found

    def leaf(self, run: Run) -> tuple[Leaf, list[Tensor]]:
        """Returns where the values of a run lie now.

        The second list holds copies of gradients that do not lie in memory as in the
        row. They have to stay until the kernel has read them.

        Raises:
            ConfigError: a gradient is sparse, or has another size than before.
        """
        leaf: Leaf = []
        copies: list[Tensor] = []
        for index, at, length in run.spans:
            if index < 0:
                place = self._tail.values.data_ptr() + at * self._itemsize
                leaf.append((place, length, self._type))
                continue
            g = self._parameters[index].grad
            if g is None:
                leaf.append((0, length, self._type))
                continue
            if g.dtype not in NAMES or not alike(g, self._strides[index]):
                held = dense(self._layout, index)
                assert held is not None  # since `g` is not
                copies.append(g := held)
            if g.numel() != self._sizes[index]:
                raise ConfigError(
                    f"the gradient of {self._layout.names[index]!r} has "
                    f"{g.numel()} elements and had {self._sizes[index]}; make a new "
                    f"CodedGradient where a model's shapes change"
                )
            place = g.data_ptr() + at * g.element_size()
            leaf.append((place, length, NAMES[g.dtype]))
        return leaf, copies
