"""A model's buffers around the passes of a step: remembered, restored, changed.

Buffers (batch-norm statistics, counters) are decoded like gradients. With b the values
before the step, b_j those after the pass over micro-batch j, and w_j its weight, every
pass begins from b, row j carries w_j (b_j - b), and the step ends with

    b + sum_j w_j (b_j - b)          rounded to the nearest integer for counters,

which is the weighted mean of the b_j, the same on every worker. The change travels in
the row's type, so a float64 buffer of a float32 model gets a change of 24 bits.

Parameters that passes change (those of a momentum encoder, or trainable ones with a
data-dependent start) are handled in the same way; "buffer" stands for them here, too.

A pass may also assign a buffer anew. Where the places of buffers are known
(`look_up_in`), every pass begins with the step's own tensors in their places, and its
changes are read from whatever tensors are in the places at its end.

For contiguous buffers on the CPU, each of these operations is one call of a kernel for
all buffers (csrc/ops/cpu/encode.h), because a model can have hundreds of small buffers
and an operation of torch on each costs microseconds. For other buffers torch computes,
on all buffers of one type at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.ops.library import NAMES, kernels
from codedgrad.row import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from codedgrad.row.layout import Layout
    from codedgrad.row.tensors import Place

# The types of buffers that the kernels know, by the letter that stands for each.
_LETTERS = {torch.float32: "f", torch.float64: "d", torch.int64: "q"}


class Buffers:
    """The buffers of one model, with their values from before the step's passes.

    Attributes:
        remembered: whether `remember` has been called.
    """

    def __init__(self, layout: Layout) -> None:
        """Allocates memory for the values."""
        self.remembered = False
        self._buffers = list(layout.buffers)
        self._names = layout.buffer_names
        self._shapes = [tensors.real(b).shape for b in layout.buffers]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._gradients, self._area = layout.gradients, layout.change_area
        self._before = [b.detach().clone() for b in layout.buffers]
        self._alike = _by_type(layout.buffers)
        self._dtype = layout.dtype
        self._type = NAMES[layout.dtype]
        # Where buffers are to be found, the buffer of each place, and the step's own
        # tensor for it; empty: it is not known.
        self._holders: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._owners: list[int] = []
        self._own: list[Tensor] = []
        self._left: list[Tensor] | None = None  # what a pass has left, see `collect`
        self._fresh = False  # `remember` was called, and no pass has begun since
        # What the buffers showed when the kernels were told of them; None: they were
        # not told yet.
        self._marks: objects.Marks | None = None
        self._table: Any = None
        # Address, size and type of each copy, for the kernels; None: torch is used.
        self._copies: list[tuple[int, int, str]] | None = None
        if all(
            b.dtype in _LETTERS
            and b.dtype in (torch.float32, torch.int64, layout.dtype)
            and b.is_contiguous()
            and b.device.type == "cpu"
            for b in layout.buffers
        ):
            self._copies = [
                (b.data_ptr(), b.numel(), _LETTERS[b.dtype]) for b in self._before
            ]

    def __len__(self) -> int:
        """Returns the number of buffers."""
        return len(self._buffers)

    @property
    def before(self) -> list[Tensor]:
        """The values that `remember` has noted."""
        return self._before

    def look_up_in(self, places: Sequence[Sequence[Place]]) -> None:
        """Says where each buffer is to be found from now on; by buffer, in order."""
        self._holders = [p.holder for some in places for p in some]
        self._keys = [p.key for some in places for p in some]
        self._owners = [i for i, some in enumerate(places) for _ in some]
        self._parameters = {i for i, some in enumerate(places) if some[0].parameter}
        self._own = [self._buffers[i] for i in self._owners]

    def remember(self) -> None:
        """Notes the buffers' values, before the first pass of a step.

        Raises:
            ConfigError: a buffer has another size or type than before.
        """
        self.remembered = self._fresh = True
        if not self._in_place():
            self._take_over(self._found())
            self._put_back()
        self._left = None
        if (table := self._for_kernels()) is not None:
            kernels("_ops").copies(table, False)
        elif self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._before, self._buffers)

    def begin_pass(self) -> None:
        """Lets a pass begin from the noted values; the first one finds them there."""
        if self._fresh:
            self._fresh = False
        else:
            self.restore()

    def restore(self) -> None:
        """Puts the noted values back, so that every pass begins from the same ones."""
        self._fresh, self._left = False, None
        self._put_back()
        if (table := self._for_kernels()) is not None:
            kernels("_ops").copies(table, True)
        elif self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._before)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Restores the noted values if an error comes in the place of `apply`."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

    def collect(self) -> None:
        """Notes which tensors a pass has left, and puts the step's own into place.

        `write_changes` then reads the values that the pass has left.

        Raises:
            ConfigError: a buffer has another size or type than before.
        """
        self._left = self._now()
        if self._left is not self._buffers:
            self._put_back()

    @property
    def slots(self) -> tuple[list[Any], list[str], list[Tensor]]:
        """Where the step's own tensors are to be: dictionaries, keys, tensors."""
        return self._holders, self._keys, self._own

    def collect_in_place(self) -> None:
        """Notes what `collect` would, where a pass has left all in its place."""
        self._left = self._buffers

    def _in_place(self) -> bool:
        """Returns whether the step's own tensors are in their places."""
        return bool(objects.items_are(self._holders, self._keys, self._own))

    def _found(self) -> list[Any]:
        """Returns what is in the places now."""
        slots = zip(self._holders, self._keys, strict=True)
        return [holder.get(key) for holder, key in slots]

    def _take_over(self, found: list[Any]) -> None:
        """Let what was assigned between the steps be the step's own from now on."""
        for tensor, index in zip(found, self._owners, strict=True):
            if tensor is not None and tensor is not self._buffers[index]:
                self._check(index, tensor)
                if index not in self._parameters:
                    tensor = tensors.writable(tensor.detach())
                self._buffers[index] = tensor
        self._own = [self._buffers[i] for i in self._owners]
        self._marks = None

    def _put_back(self) -> None:
        """Puts the step's own tensors into their places."""
        if self._in_place():
            return
        slots = zip(self._holders, self._keys, self._own, strict=True)
        for holder, key, tensor in slots:
            holder[key] = tensor

    def shaped(self, changes: Tensor) -> list[Tensor]:
        """Returns views of `changes`, one per buffer, in the buffers' shapes."""
        parts = changes.split(self._sizes)
        return [p.view(shape) for p, shape in zip(parts, self._shapes, strict=True)]

    def write_changes(self, out: Tensor, shaped: Sequence[Tensor]) -> None:
        """Writes what has been added to every buffer since `remember`.

        Args:
            out: elements for all buffers, one buffer after the other.
            shaped: `self.shaped(out)`, which callers keep to save the time.

        Raises:
            ConfigError: a buffer has another size or type than before.
        """
        if not self._buffers:
            return
        now = self._now() if self._left is None else self._left
        if now is self._buffers and (table := self._for_kernels()) is not None:
            kernels("_ops").changes(table, self._type, out.data_ptr(), True)
            return
        for index, tensor in enumerate(now):
            self._check(index, tensor)
        with torch.no_grad():
            places: list[Tensor] = []
            changes: list[Tensor] = []
            for some in self._alike:
                after = _joined([now[i] for i in some])
                before = _joined([self._before[i] for i in some])
                change = tensors.change(after, before, self._dtype)
                sizes = [self._sizes[i] for i in some]
                changes += change.reshape(-1).split(sizes)
                places += [shaped[i].view(-1) for i in some]
            torch._foreach_copy_(places, changes)

    def apply(self, total: Tensor) -> None:
        """Sets every buffer to its noted value plus the change in a decoded sum.

        Args:
            total: the decoded sum of a step [count], where the model is.
        """
        if not self._buffers:
            return
        self._put_back()
        tail = total[self._gradients :]
        if (table := self._for_kernels()) is not None:
            kernels("_ops").changes(table, self._type, tail.data_ptr(), False)
            return
        with torch.no_grad():
            parts = self.shaped(tail[self._area])
            for some in self._alike:
                before = [self._before[i] for i in some]
                joined = _joined(before), _joined([parts[i] for i in some])
                flat = tensors.changed(*joined).reshape(-1)
                split = flat.split([b.numel() for b in before])
                values = [v.view(b.shape) for v, b in zip(split, before, strict=True)]
                torch._foreach_copy_([self._buffers[i] for i in some], values)

    def _now(self) -> list[Tensor]:
        """Returns the tensors that a pass has left, the step's own list if it can."""
        if self._in_place():
            return self._buffers
        now: list[Any] = list(self._buffers)
        for tensor, index in zip(self._found(), self._owners, strict=True):
            if tensor is not self._buffers[index]:
                self._check(index, tensor)
                now[index] = tensor
        return now

    def _check(self, index: int, tensor: Tensor | None) -> None:
        """Refuses what cannot stand in the place of a buffer."""
        before = self._before[index]
        if tensor is not None and not tensor.is_nested:
            same = tensor.dtype == before.dtype, tensor.shape == before.shape
            if all(same):
                return
        got, want = tensors.kind(tensor), tensors.kind(before)
        if got != want:
            raise ConfigError(
                f"the buffer {self._names[index]!r} has become {got} in a pass and was "
                f"{want}; a tensor that passes change must keep its shape and type, or "
                f"be registered with persistent=False if it is a mere cache"
            )

    def _for_kernels(self) -> Any:
        """Returns a table of address now and of the copy, size and type of each buffer.

        The buffers are looked at in every call, because a model may have moved one to
        other memory (`buffer.data = ...`). None: there is none, or one has to be left
        to torch.
        """
        if self._copies is None or not self._buffers:
            return None
        if self._marks is not None and self._marks.same():
            return self._table
        self._marks = None
        if not all(b.is_contiguous() for b in self._buffers):
            return None
        found = []
        for name, b, (before, size, letter) in zip(
            self._names, self._buffers, self._copies, strict=True
        ):
            if b.numel() != size or _LETTERS.get(b.dtype) != letter:
                raise ConfigError(
                    f"the buffer {name!r} has become {b.numel()} x {b.dtype} in a pass "
                    f"and was {size} elements of another type or size; a tensor that "
                    f"passes change must keep its shape and type"
                )
            found.append((b.data_ptr(), before, size, letter))
        self._table = kernels("_ops").BufferTable(found)
        held = list(self._buffers)
        self._marks = objects.Marks(held, versions=False, addresses=True)
        return self._table


def _by_type(buffers: Sequence[Tensor]) -> list[list[int]]:
    """Returns the indices of the buffers of each type; complex ones stay alone."""
    alike: dict[Any, list[int]] = {}
    for index, b in enumerate(buffers):
        alike.setdefault(index if b.is_complex() else b.dtype, []).append(index)
    return list(alike.values())


def _joined(some: Sequence[Tensor]) -> Tensor:
    """Returns the elements of tensors of one type in one vector."""
    if len(some) == 1:
        return some[0]
    return torch.cat([t.reshape(-1) for t in some])
