"""The order in which a backward brings gradients, learned in one pass.

A Python hook costs a backward microseconds, on each parameter far more than the
encoding of small models. So only one pass, which learns the order, has a hook on every
parameter. From then on a bucket has one hook, on the parameter whose gradient comes
last of the bucket's: when it is called, the others have come.

The order may change. A gradient that has not come when the hook is called makes its
bucket wait for the end of the backward, and the order is learned again in a later pass;
one that comes later although its bucket is encoded is refused by the writer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from codedgrad.ops import objects
from codedgrad.row.weak import weakly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

_LONGEST_REST = 256  # passes between two that learn


class ArrivalOrder:
    """Tells of the buckets of one model whose gradients have all come.

    Attributes:
        learned: False in a pass that learns the order and tells nothing.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        inside: Sequence[Sequence[int]],
        complete: Callable[[list[int]], None],
    ) -> None:
        """Prepare to learn; the hooks come with the first `begin`.

        Args:
            parameters: those of the model.
            inside: for every bucket, the indices of the parameters in it.
            complete: called with the buckets whose gradients have all come, in order.
        """
        self._parameters = list(parameters)
        self._inside = inside
        self._complete = weakly(complete)
        self.learned = False
        self._handles: list[Any] = []
        self._closes: dict[int, list[int]] = {}  # by parameter, the buckets it closes
        self._usual: dict[int, int] = {}  # portions of each closing gradient
        self._came: list[int] = []  # the portions of this pass, in their order
        self._rest = 0  # passes until the order may be learned again
        self._next_rest = 1
        self._late = False  # a bucket had to wait for a gradient out of order
        self._running = False

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self) -> None:
        """Prepare for a pass, before its forward."""
        self._running = False
        self._came = []
        if self.learned and self._late and self._rest == 0:
            self.learned = False
            self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
            self.close()
        self._rest = max(0, self._rest - 1)
        self._late = False
        if not self.learned and not self._handles:
            self._attach(range(len(self._parameters)))

    def backward_begins(self, first: Tensor | None = None) -> bool:
        """Begin to listen; returns whether buckets will be told of in this backward.

        They are not while the order is learned, where the user has attached a hook to a
        closing parameter after ours, which may change the gradient, and where gradients
        of an earlier backward are added to: nothing but a hook on each of them would
        tell which have come.

        Args:
            first: the parameter whose gradient has come already, if one has.
        """
        self._running = True
        return (
            self.learned
            and all(
                _last_hook(self._parameters[i]) == handle.id
                for i, handle in zip(self._closes, self._handles, strict=True)
            )
            and self._empty_but(first)
        )

    def _empty_but(self, first: Tensor | None) -> bool:
        """Returns whether no parameter, but for `first`, has a gradient."""
        if first is None:
            return bool(objects.all_none(self._parameters, "grad"))
        return all(p.grad is None or p is first for p in self._parameters)

    def end(self) -> None:
        """Stop to listen, after a backward that is complete."""
        if self._running and not self.learned and self._came:
            self._learn()
        self._running = False

    def abort(self) -> None:
        """Stop to listen; nothing is learned from a pass that ended early."""
        self._running = False

    def out_of_order(self) -> None:
        """Hear that a gradient came after the hook of its bucket was called."""
        self._late = True

    def _attach(self, indices: Iterable[int]) -> None:
        self._handles = [
            self._parameters[i].register_post_accumulate_grad_hook(
                partial(weakly(self._gradient_came), i)
            )
            for i in indices
        ]

    def _learn(self) -> None:
        last = {index: place for place, index in enumerate(self._came)}
        self._closes = {}
        for bucket, indices in enumerate(self._inside):
            came = [i for i in indices if i in last]
            if came:
                closing = max(came, key=last.__getitem__)
                self._closes.setdefault(closing, []).append(bucket)
        self._usual = {i: self._came.count(i) for i in self._closes}
        self._rest = self._next_rest
        self.learned = True
        self.close()
        self._attach(self._closes)  # now, so that hooks of the user's are after ours

    def _gradient_came(self, index: int, _parameter: Tensor) -> None:
        """The hook: a gradient, or a portion of it, has been added to `p.grad`."""
        if not self._running:
            return
        self._came.append(index)
        if not self.learned or self._came.count(index) != self._usual[index]:
            return
        self._complete(self._closes[index])


def _last_hook(parameter: Tensor) -> int | None:
    """Returns the number of the hook that is called last with the gradient."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return next(reversed(hooks)) if hooks else None
