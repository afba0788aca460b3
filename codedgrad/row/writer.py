"""A micro-batch's leaf goes into its row while its backward runs.

When all gradients of a bucket are there, and only then, a hook encodes the bucket
(see `codedgrad.row.encoder`), the gradients still in the cache, and sends it:

    row_b = weight * gradients_b + partial sums_b      innermost first
    send(b)

with the sums of the row's earlier micro-batches, so the bits are those of the row
formed after the backward. (A `p.grad` that is a view of the row would save nothing: it
has to be zeroed before, added to, and then multiplied by the weight, three reads and
three writes instead of one each.) The last bucket, with what else travels (buffer
changes, used flags, loss), is encoded after the backward. A gradient whose buckets are
encoded is given back at once.

A bucket that is encoded cannot be taken back. So one with a parameter that this
pass did not use waits for the end of the backward, as do all buckets

- of the first pass: what it does is learned first, e.g. that a gradient comes in two
  portions (reentrant checkpointing);
- where the loss function itself calls `backward()`;
- where later hooks of the user may still change gradients.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.row.encoder import encoder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from codedgrad.row.layout import Payload


class _Leaf:
    """One micro-batch on its way into a row."""

    def __init__(
        self,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
        check: Callable[[bool], None],
        send: Callable[[int], None] | None,
    ) -> None:
        self.out, self.weight, self.sums = out, weight, sums
        self.check, self.send = check, send
        self.running = False  # our own backward has begun
        self.hooked = False  # buckets are finished as gradients come


class RowWriter:
    """Hooks on the parameters of one model; knows no network."""

    def __init__(self, payload: Payload, *, overlap: bool) -> None:
        """Attach the hooks. `overlap` False: rows are written after the backward."""
        self._payload = payload
        self._encoder = encoder_of(payload)
        parameters = payload.parameters
        self._handles: list[Any] = []
        self._hooks: list[int] = []
        if overlap and len(payload.bucket_starts) > 2:
            self._handles = [
                p.register_post_accumulate_grad_hook(partial(self._arrived, i))
                for i, p in enumerate(parameters)
            ]
            self._hooks = [_hooks_on(p) for p in parameters]
        starts = payload.bucket_starts
        bounds = list(itertools.pairwise(starts))
        self._buckets = [payload.buckets_of(i) for i in range(len(parameters))]
        self._needs = [0] * len(bounds)  # gradients, and the rest in the last
        for buckets in self._buckets:
            for b in buckets:
                self._needs[b] += 1
        for b, (_, end) in enumerate(bounds):
            self._needs[b] += end > payload.gradients
        self._usual = [1] * len(parameters)  # portions in which a gradient comes
        self._learned = False
        self._leaf: _Leaf | None = None
        self._inside: list[list[int]] = [[] for _ in bounds]  # parameters, by bucket
        for index, buckets in enumerate(self._buckets):
            for b in buckets:
                self._inside[b].append(index)
        self._given = [False] * len(parameters)  # used, and its gradient given back
        self._portions: list[int] = []  # in this pass, by parameter
        self._missing: list[int] = []  # by bucket
        self._finished: list[bool] = []

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(
        self,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
        check: Callable[[bool], None],
        send: Callable[[int], None] | None = None,
    ) -> None:
        """Before the forward of a micro-batch.

        Args:
            out: the row [count]; nobody else may write it until `finish`.
            weight: of the micro-batch in the step.
            sums: partial sums [count] to be added, the innermost last.
            check: told of each bucket whether its leaf is finite, before the bucket
                is sent (on a device: all of them before the last); what it raises ends
                the pass.
            send: called once with each bucket of the row that will not change any
                more. None: not needed before `finish`.
        """
        self._encoder.begin(soon=send is not None)
        leaf = _Leaf(out, weight, sums, check, send)
        # Hooks that come after ours may change what we have read.
        leaf.hooked = bool(self._handles) and self._learned and self._unchanged()
        self._portions = [0] * len(self._usual)
        self._given = [False] * len(self._usual)
        self._missing = self._needs.copy()
        self._finished = [False] * len(self._needs)
        self._leaf = leaf

    def _unchanged(self) -> bool:
        return self._hooks == [_hooks_on(p) for p in self._payload.parameters]

    def backward_begins(self) -> None:
        """Gradients that came before are the loss function's own doing."""
        if self._leaf is not None:
            self._leaf.running = True

    def abort(self) -> None:
        """The pass ends without a row."""
        self._leaf = None

    def finish(self, loss: float | Tensor) -> None:
        """After the backward: write and finish what is not yet."""
        leaf, self._leaf = self._leaf, None
        assert leaf is not None  # begin comes first
        self._payload.fill_tail(loss, self._given)
        if leaf.send is None and not any(self._finished):
            leaf.check(self._encoder.row(leaf.out, leaf.weight, leaf.sums))
        else:
            for bucket, finished in enumerate(self._finished):
                if not finished:
                    self._finish(leaf, bucket)
        self._usual = list(map(max, self._usual, self._portions))
        self._learned = True

    def nothing(
        self,
        out: Tensor,
        sums: Sequence[Tensor],
        send: Callable[[int], None] | None = None,
    ) -> None:
        """A micro-batch without samples: its leaf is zero."""
        self._encoder.begin(soon=send is not None)
        for bucket in range(len(self._needs)):
            self._encoder.nothing(bucket, out, sums)
            if send is not None:
                send(bucket)

    def _finish(self, leaf: _Leaf, bucket: int) -> None:
        leaf.check(self._encoder.bucket(bucket, leaf.out, leaf.weight, leaf.sums))
        self._finished[bucket] = True
        if leaf.send is not None:
            leaf.send(bucket)
        if leaf.hooked:
            self._give_back(bucket)

    def _give_back(self, bucket: int) -> None:
        """Gradients that lie in finished buckets alone are not needed any more.

        The memory of one is the next one's then, still in the cache: a backward does
        not touch a whole model's worth of new pages.
        """
        for index in self._inside[bucket]:
            if all(self._finished[b] for b in self._buckets[index]):
                self._given[index] = self._payload.parameters[index].grad is not None
                self._payload.parameters[index].grad = None

    def _arrived(self, index: int, _parameter: Tensor) -> None:
        leaf = self._leaf
        if leaf is None:
            return
        if not leaf.running:
            leaf.hooked = False
            return
        self._portions[index] += 1
        if not leaf.hooked or self._portions[index] < self._usual[index]:
            return
        buckets = self._buckets[index]
        first = self._portions[index] == self._usual[index]
        if not first and any(self._finished[b] for b in buckets):
            raise ConfigError(
                f"the gradient of {self._payload.names[index]!r} came in "
                f"{self._portions[index]} portions, in earlier passes in "
                f"{self._usual[index]} at most, and is encoded already; set "
                f"overlap=False for a model that does so"
            )
        if not first:
            return
        for b in buckets:
            self._missing[b] -= 1
            if self._missing[b] == 0:
                self._finish(leaf, b)


def _hooks_on(parameter: Tensor) -> int:
    return len(getattr(parameter, "_post_accumulate_grad_hooks", None) or ())
