"""A micro-batch's leaf is written into its row while its backward is running.

A hook on every parameter counts the gradients that have come. As soon as all gradients
of a bucket have, the bucket is encoded (see `codedgrad.row.encoder`) while they are
still in the cache, and the leaf's listener is told, who sends it:

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
parameter which this pass does not use waits for the end of the backward. All buckets
wait for it

- in the first pass, which only learns what is usual, for example that a gradient comes
  in two portions (reentrant checkpointing);
- if the loss function calls `backward()` itself;
- if the user has attached later hooks, which may still change gradients.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from codedgrad.errors import ConfigError
from codedgrad.row.encoder import encoder_of
from codedgrad.row.weak import weakly

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
            finite: no value of the leaf is NaN or infinite. On a device, only the call
                for the last bucket says so, about all of them.
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
        sums: the partial sums [count] that are added, the innermost last.
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
    """Writes rows with hooks on the parameters of one model; it knows no network.

    For every micro-batch, `begin` comes before the forward, `backward_begins` before
    the backward, and `finish` after it, or `abort` where the pass ends early.
    """

    def __init__(self, payload: Payload, *, overlap: bool) -> None:
        """Attaches the hooks.

        Args:
            payload: the model's.
            overlap: False: there are no hooks, rows are written after the backward.
        """
        layout = self._layout = payload.layout
        self._tail = payload.tail
        self._encoder = encoder_of(payload)
        self._handles: list[Any] = []
        self._hooks: list[int] = []
        if overlap and len(layout.bucket_starts) > 2:
            self._handles = [
                p.register_post_accumulate_grad_hook(
                    partial(weakly(self._gradient_came), i)
                )
                for i, p in enumerate(layout.parameters)
            ]
            self._hooks = [_hooks_on(p) for p in layout.parameters]
        count = len(layout.parameters)
        self._buckets = [layout.buckets_of(i) for i in range(count)]
        self._inside = _parameters_by_bucket(layout)
        self._needs = _needs_by_bucket(layout)
        self._usual = [1] * count  # the portions in which a gradient comes
        self._learned = False
        # The pass that is under way:
        self._leaf: Leaf | None = None
        self._running = False  # its backward has begun
        self._hooked = False  # its buckets are encoded as gradients come
        self._portions = [0] * count  # portions that have come, by parameter
        self._given_back = [False] * count  # a gradient came and is encoded
        self._missing = self._needs.copy()  # what has not come, by bucket
        self._finished = [False] * len(self._needs)  # by bucket

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, leaf: Leaf) -> None:
        """Begins to write a leaf; called before the forward of its micro-batch."""
        self._encoder.begin(soon=leaf.early)
        # A hook that runs after ours may change what we have read.
        self._hooked = bool(self._handles) and self._learned and self._hooks_are_last()
        self._running = False
        self._portions = [0] * len(self._usual)
        self._given_back = [False] * len(self._usual)
        self._missing = self._needs.copy()
        self._finished = [False] * len(self._needs)
        self._leaf = leaf

    def backward_begins(self) -> None:
        """Tells that the backward of the loss begins.

        Gradients that came earlier are from a backward inside the loss function.
        """
        self._running = True

    def abort(self) -> None:
        """Forgets the leaf, if one is being written; its row stays incomplete."""
        self._leaf = None

    def finish(self, loss: float | Tensor) -> None:
        """Writes what is not yet written of the row; called after the backward.

        Args:
            loss: the mean loss of the micro-batch. A tensor is not waited for.

        Raises:
            ConfigError: a gradient is sparse, or has another size than before.
        """
        leaf, self._leaf = self._leaf, None
        assert leaf is not None  # `begin` comes first
        self._tail.fill(loss, self._given_back)
        if not leaf.early and not any(self._finished):
            finite = self._encoder.row(leaf.out, leaf.weight, leaf.sums)
            leaf.listener.bucket_checked(finite)
        else:
            for bucket, finished in enumerate(self._finished):
                if not finished:
                    self._finish(leaf, bucket)
        self._usual = list(map(max, self._usual, self._portions))
        self._learned = True

    def nothing(self, leaf: Leaf) -> None:
        """Writes the whole row of a micro-batch without samples, whose leaf is zero."""
        self._encoder.begin(soon=leaf.early)
        for bucket in range(len(self._needs)):
            self._encoder.nothing(bucket, leaf.out, leaf.sums)
            if leaf.early:
                leaf.listener.bucket_ready(bucket)

    def _hooks_are_last(self) -> bool:
        """Returns whether no hook has been added to a parameter since ours."""
        return self._hooks == [_hooks_on(p) for p in self._layout.parameters]

    def _gradient_came(self, index: int, _parameter: Tensor) -> None:
        """The hook: a gradient, or a portion of it, has been added to `p.grad`."""
        leaf = self._leaf
        if leaf is None:
            return
        if not self._running:
            self._hooked = False
            return
        self._portions[index] += 1
        if not self._hooked or self._portions[index] < self._usual[index]:
            return
        buckets = self._buckets[index]
        if self._portions[index] > self._usual[index]:
            if any(self._finished[b] for b in buckets):
                raise ConfigError(
                    f"the gradient of {self._layout.names[index]!r} came in "
                    f"{self._portions[index]} portions, in earlier passes in "
                    f"{self._usual[index]} at most, and is encoded already; set "
                    f"overlap=False for a model that does so"
                )
            return
        for b in buckets:
            self._missing[b] -= 1
            if self._missing[b] == 0:
                self._finish(leaf, b)

    def _finish(self, leaf: Leaf, bucket: int) -> None:
        """Encodes a bucket and tells the listener."""
        finite = self._encoder.bucket(bucket, leaf.out, leaf.weight, leaf.sums)
        leaf.listener.bucket_checked(finite)
        self._finished[bucket] = True
        if leaf.early:
            leaf.listener.bucket_ready(bucket)
        if self._hooked:
            self._give_back(bucket)

    def _give_back(self, bucket: int) -> None:
        """Drops gradients all of whose buckets are finished, which nobody needs.

        The next gradient gets the memory, which is still in the cache. So a backward
        does not touch a whole model's worth of new pages.
        """
        for index in self._inside[bucket]:
            if all(self._finished[b] for b in self._buckets[index]):
                parameter = self._layout.parameters[index]
                self._given_back[index] = parameter.grad is not None
                parameter.grad = None


def _parameters_by_bucket(layout: Layout) -> list[list[int]]:
    """Returns for every bucket the parameters that lie in it, at least partly."""
    inside: list[list[int]] = [[] for _ in layout.bucket_starts[1:]]
    for index in range(len(layout.parameters)):
        for bucket in layout.buckets_of(index):
            inside[bucket].append(index)
    return inside


def _needs_by_bucket(layout: Layout) -> list[int]:
    """Returns how many parts a bucket waits for: its gradients, and the tail as one."""
    bounds = itertools.pairwise(layout.bucket_starts)
    return [
        len(inside) + (end > layout.gradients)
        for inside, (_, end) in zip(_parameters_by_bucket(layout), bounds, strict=True)
    ]


def _hooks_on(parameter: Tensor) -> int:
    return len(getattr(parameter, "_post_accumulate_grad_hooks", None) or ())
