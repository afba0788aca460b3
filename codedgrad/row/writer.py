"""A micro-batch's leaf is written into its row while its backward is running.

As soon as all gradients of a bucket have come (see `codedgrad.row.arrival`), the bucket
is encoded (see `codedgrad.row.encoder`) while they are still in the cache, and the
leaf's listener is told, who sends it:

    row_b = weight * gradients_b + partial sums_b      innermost first
    listener.bucket_ready(b)

The partial sums are those of the row's earlier micro-batches, so the bits are the same
as if the row were formed after the backward. The last bucket also holds the tail
(buffer changes, used flags, loss) and is always encoded after the backward. A gradient
is given back as soon as all of its buckets are encoded.

(It would save nothing to let `p.grad` be a view of the row: the view has to be zeroed
first, then added to, then multiplied by the weight, which is three reads and three
writes in place of one each.)

A bucket that has been encoded cannot be taken back. Therefore a bucket that holds a
parameter which this pass has not given a gradient yet waits for the end of the
backward, and a gradient that changes after its bucket was encoded is an error. All
buckets wait for the end

- in a pass that learns in which order the gradients come;
- if gradients of an earlier backward are added to;
- if the user has attached later hooks, which may still change gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from codedgrad.errors import ConfigError
from codedgrad.row.arrival import ArrivalOrder
from codedgrad.row.encoder import encoder_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from codedgrad.row.layout import Layout
    from codedgrad.row.payload import Payload


class LeafListener(Protocol):
    """Hears what happens to the buckets of a leaf while its row is written."""

    def bucket_checked(self, finite: bool) -> None:
        """Called for every bucket when it is encoded, before `bucket_ready`.

        What this raises ends the pass. It is not called for a leaf without samples.

        Args:
            finite: no value of the leaf is NaN or infinite. On a device it is always
                True, see `row_flagged`.
        """

    def row_flagged(self, flag: Tensor) -> None:
        """Called on a device before the last bucket is sent; what it raises ends it.

        Args:
            flag: a number on the device, not 0 where a value of the leaf is NaN or
                infinite. To read it is to wait for the device.
        """

    def bucket_ready(self, bucket: int) -> None:
        """Called once for every bucket, if the leaf is `early`.

        From now on, nobody changes this bucket of the row.
        """


@dataclass(slots=True)
class Leaf:
    """One micro-batch and the row that it completes.

    Attributes:
        out: the row [count]. Nobody else may write to it before `finish` returns.
        weight: the weight of the micro-batch in the step.
        sums: the partial sums [count] that are added, the innermost last. One of them
            may be `out`, if `RowWriter.in_place`.
        listener: hears of the leaf's buckets.
        early: buckets are wanted as soon as they are ready. Otherwise the row is
            wanted as a whole, after `finish`.
    """

    out: Tensor
    weight: float
    sums: Sequence[Tensor]
    listener: LeafListener
    early: bool = False


class RowWriter:
    """Writes rows, with hooks on some parameters of one model; it knows no network.

    For every micro-batch, `begin` comes before the forward, `backward_begins` before
    the backward, and `finish` after it, or `abort` where the pass ends early.
    """

    def __init__(self, payload: Payload, *, overlap: bool) -> None:
        """Prepares to write rows.

        Args:
            payload: the model's.
            overlap: False: there are no hooks, rows are written after the backward.
        """
        layout = self._layout = payload.layout
        self._tail = payload.tail
        self._encoder = encoder_of(payload)
        count = len(layout.parameters)
        self._buckets = [layout.buckets_of(i) for i in range(count)]
        self._inside = _parameters_by_bucket(layout)
        # A bucket with a part of the tail is encoded after the backward.
        self._whole = [end <= layout.gradients for end in layout.bucket_starts[1:]]
        self._order: ArrivalOrder | None = None
        if overlap and len(layout.bucket_starts) > 2:
            inside = [
                own if whole else []
                for own, whole in zip(self._inside, self._whole, strict=True)
            ]
            self._order = ArrivalOrder(layout.parameters, inside, self._complete)
        # The pass that is under way:
        self._leaf: Leaf | None = None
        self._hooked = False  # its buckets are encoded as gradients come
        self._given_back = [False] * count  # a gradient came and is encoded
        # Gradients of which only some buckets are encoded, with their versions then.
        self._read: dict[int, tuple[Tensor, int]] = {}
        self._unready: list[int] = []  # a gradient was missing when the bucket closed
        self._finished = [False] * len(self._inside)  # by bucket

    @property
    def in_place(self) -> bool:
        """Whether a leaf may be added to a partial sum where that lies."""
        return self._encoder.in_place

    def close(self) -> None:
        """Takes the hooks off."""
        if self._order is not None:
            self._order.close()

    def begin(self, leaf: Leaf) -> None:
        """Begins to write a leaf; called before the forward of its micro-batch."""
        self._encoder.begin(soon=leaf.early)
        self._hooked = False
        self._given_back = [False] * len(self._buckets)
        self._read, self._unready = {}, []
        self._finished = [False] * len(self._inside)
        self._leaf = leaf
        if self._order is not None:
            self._order.begin()

    def backward_begins(self, first: Tensor | None = None) -> None:
        """Tells that the backward of the loss begins.

        Args:
            first: the parameter whose gradient has come already, if the backward runs.
                Other gradients that are there are from earlier backwards.
        """
        if self._order is not None:
            self._hooked = self._order.backward_begins(first)

    def abort(self) -> None:
        """Forgets the leaf, if one is being written; its row stays incomplete."""
        self._leaf = None
        if self._order is not None:
            self._order.abort()

    def finish(self, loss: float | Tensor) -> None:
        """Writes what is not yet written of the row; called after the backward.

        Without a backward since `begin`, the row is what `p.grad` held before.

        Args:
            loss: the mean loss of the micro-batch. A tensor is not waited for.

        Raises:
            ConfigError: a gradient is sparse, or has another size than before, or
                changed after it was encoded.
        """
        leaf, self._leaf = self._leaf, None
        assert leaf is not None  # `begin` comes first
        if self._order is not None:
            self._check_order(self._order)
        self._tail.fill(loss, self._given_back)
        if not leaf.early and not any(self._finished):
            finite = self._encoder.row(leaf.out, leaf.weight, leaf.sums)
            self._checked(leaf, finite)
        else:
            for bucket, finished in enumerate(self._finished):
                if not finished:
                    self._finish(leaf, range(bucket, bucket + 1))

    def nothing(self, leaf: Leaf) -> None:
        """Writes the whole row of a micro-batch without samples, whose leaf is zero."""
        self._encoder.begin(soon=leaf.early)
        for bucket in range(len(self._inside)):
            self._encoder.nothing(bucket, leaf.out, leaf.sums)
            if leaf.early:
                leaf.listener.bucket_ready(bucket)

    def _check_order(self, order: ArrivalOrder) -> None:
        """Refuses gradients that came, or changed, after they were encoded."""
        parameters, names = self._layout.parameters, self._layout.names
        if any(self._given_back):
            for index, given_back in enumerate(self._given_back):
                if given_back and parameters[index].grad is not None:
                    self._refuse(names[index])
        for index, (gradient, version) in self._read.items():
            now = parameters[index].grad
            if now is None and self._given_back[index]:
                continue
            if now is not gradient or gradient._version != version:
                self._refuse(names[index])
        late = (parameters[i].grad for b in self._unready for i in self._inside[b])
        if any(gradient is not None for gradient in late):
            order.out_of_order()
        order.end()

    def _refuse(self, name: str) -> None:
        raise ConfigError(
            f"the gradient of {name!r} came in 2 portions or was changed by a hook "
            f"after its last one, in earlier passes it was not, and is encoded "
            f"already; set overlap=False for a model that does so"
        )

    def _complete(self, buckets: Sequence[int]) -> None:
        """Hears that the gradient which usually comes last of these has come."""
        leaf = self._leaf
        if leaf is None or not self._hooked:
            return
        parameters = self._layout.parameters
        came = []
        for bucket in buckets:
            if all(parameters[i].grad is not None for i in self._inside[bucket]):
                came.append(bucket)
            else:
                self._unready.append(bucket)
        for some in _neighbours(came):
            if leaf.early:  # the others want each as soon as it can be sent
                for bucket in some:
                    self._finish(leaf, range(bucket, bucket + 1))
            else:
                self._finish(leaf, some)
        self._give_back(came)

    def _finish(self, leaf: Leaf, some: range) -> None:
        """Encodes neighbouring buckets and tells the listener."""
        finite = self._encoder.buckets(some, leaf.out, leaf.weight, leaf.sums)
        self._checked(leaf, finite)
        for bucket in some:
            self._finished[bucket] = True
            if leaf.early:
                leaf.listener.bucket_ready(bucket)

    def _checked(self, leaf: Leaf, finite: bool) -> None:
        """Tell the listener what is known of the values that were written last."""
        leaf.listener.bucket_checked(finite)
        if self._encoder.flag is not None:
            leaf.listener.row_flagged(self._encoder.flag)

    def _give_back(self, buckets: Sequence[int]) -> None:
        """Drops gradients of these buckets all of whose buckets are finished.

        The next gradient gets the memory, which is still in the cache. So a backward
        does not touch a whole model's worth of new pages. A gradient that is still
        needed is remembered with its version, so that a change of it is seen.
        """
        for index in dict.fromkeys(i for b in buckets for i in self._inside[b]):
            parameter = self._layout.parameters[index]
            gradient = parameter.grad
            assert gradient is not None  # `_complete` has looked
            known, version = self._read.get(index, (gradient, gradient._version))
            if known is not gradient or version != gradient._version:
                self._refuse(self._layout.names[index])
            if all(self._finished[b] for b in self._buckets[index]):
                self._given_back[index] = True
                parameter.grad = None
            else:
                self._read[index] = (gradient, version)


def _neighbours(buckets: Sequence[int]) -> list[range]:
    """Returns rising numbers as ranges, as few as there can be."""
    found: list[range] = []
    for bucket in buckets:
        if found and found[-1].stop == bucket:
            found[-1] = range(found[-1].start, bucket + 1)
        else:
            found.append(range(bucket, bucket + 1))
    return found


def _parameters_by_bucket(layout: Layout) -> list[list[int]]:
    """Returns for every bucket the parameters that lie in it, at least partly."""
    inside: list[list[int]] = [[] for _ in layout.bucket_starts[1:]]
    for index in range(len(layout.parameters)):
        for bucket in layout.buckets_of(index):
            inside[bucket].append(index)
    return inside
