"""A witness of tensors: says which of them a pass has changed, and puts them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from codedgrad.ops.objects import Marks, mark_of
from codedgrad.row import tensors
from codedgrad.row.tensors import travels

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.row.tensors import Place

# Roles: a buffer or frozen parameter of ours, a parameter in the payload, another
# model's tensor.
STATIC, TRAINABLE, FOREIGN = "static", "trainable", "foreign"

# Bytes of trainable parameters up to which copies are made while values are compared.
_SMALL = 1 << 30


@dataclass(eq=False)
class Entry:
    """One tensor that passes must not change.

    Attributes:
        place: where it is.
        tensor: the tensor itself, in the step's state.
        role: STATIC, TRAINABLE or FOREIGN.
        title: what to call it in a message.
        kind: its shape and type in the step's state.
        mark: its version and address in the step's state.
        copy: its values in the step's state, if they are kept.
        digest: a digest of its values, if that is kept.
        touched: whether a pass has written to it and left the same values.
    """

    place: Place
    tensor: Tensor
    role: str
    title: str
    kind: str = ""
    mark: tuple[int, int] = (-1, -1)
    copy: Tensor | None = None
    digest: int | None = None
    touched: bool = False

    def note(self, mark: tuple[int, int], *, digest: bool) -> None:
        """Note the state, but for the copy."""
        self.kind, self.mark = tensors.kind(self.tensor), mark
        self.digest = tensors.digest(self.tensor) if digest else None


class Change(NamedTuple):
    """What a pass has done to a tensor.

    Attributes:
        entry: the tensor.
        reshaped: its shape and type now, if these have changed.
        copied: whether it can be put back.
        replaced: whether another tensor is in its place.
    """

    entry: Entry
    reshaped: str | None
    copied: bool
    replaced: bool

    def stays(self) -> str | None:
        """Returns why the tensor cannot begin to travel; None: it can."""
        if self.reshaped is not None:
            return (
                f"which has become {self.reshaped} and was {self.entry.kind}; state "
                f"that passes change must keep its shape and type, and a mere cache is "
                f"registered with persistent=False"
            )
        if not travels(self.entry.tensor):
            return (
                f"which cannot travel to the other workers: it is {self.entry.kind}, "
                f"{self.entry.tensor.layout}; keep it as a dense tensor, or do not "
                f"change it in the loss function"
            )
        if self.replaced and self.entry.role == TRAINABLE:
            return (
                "a trainable parameter, for another one, whose gradient would be lost; "
                "replace parameters between the steps"
            )
        if not self.copied:
            return (
                "of which no copy is kept (it is large, or a trainable parameter that "
                "passes began to change late), so the step cannot be done again; "
                "change it between the steps, or from the first step on"
            )
        return None


class Witness:
    """Compares tensors around passes."""

    def __init__(self, budget: int) -> None:
        """`budget` is the most bytes of copies."""
        self._budget = budget
        self._values = False
        self.watch([])

    def watch(self, entries: list[Entry]) -> None:
        """Watch these tensors from now on; `begin` comes next."""
        # The optimizer changes trainable ones in every step, the others rest.
        self._entries = sorted(entries, key=lambda e: e.role == TRAINABLE)
        self._resting = sum(e.role != TRAINABLE for e in entries)
        held = [e.tensor for e in self._entries]
        self._rest = Marks(held[: self._resting], versions=True, addresses=True)
        self._trained = Marks(held[self._resting :], versions=True, addresses=True)
        self._begun = False  # no `begin` has been called since
        self._kept_trained = False  # there may be copies of trainable parameters
        self._digests = False
        trainable = sum(e.tensor.nbytes for e in self._entries[self._resting :])
        self._small = trainable <= _SMALL
        left = self._budget
        statics = [e for e in entries if e.role == STATIC and travels(e.tensor)]
        self._kept: set[int] = set()
        for e in sorted(statics, key=lambda e: e.tensor.nbytes):
            left -= e.tensor.nbytes
            if left < 0:
                break
            self._kept.add(id(e))

    def begin(self, *, values: bool) -> None:
        """Note the step's state; with `values`, passes are compared by values, too."""
        self._values = values
        anew = values or not self._begun
        self._begun = True
        if anew or not self._rest.same():
            before = self._rest.noted()
            self._rest.renew()
            for e, old, now in zip(
                self._entries, before, self._rest.noted(), strict=False
            ):
                if anew or old != now:
                    self._note(e)
        if anew or not self._trained.same():
            self._trained.renew()
            if anew or self._kept_trained:
                self._note_trained(anew=anew)
        if self._digests and not values:
            for e in self._entries:
                e.digest = None
        self._digests = values

    def _note_trained(self, *, anew: bool) -> None:
        """Note the state of the trainable parameters, with the wanted copies."""
        trained = self._entries[self._resting :]
        for e in trained:
            if anew:
                self._note(e)
            if e.touched or not self._values:
                e.copy = e.tensor.detach().clone() if e.touched else None
        self._kept_trained = self._values or any(e.touched for e in trained)

    def _note(self, e: Entry) -> None:
        """Note the state of one tensor, with its values if they are wanted."""
        if id(e) in self._kept:
            e.copy = e.tensor.detach().clone()
        elif e.role == TRAINABLE:
            keep = self._values and self._small
            e.copy = e.tensor.detach().clone() if keep else None
        e.note(mark_of(e.tensor), digest=self._values and e.copy is None)

    def changes(self, *, in_place: bool) -> list[Change]:
        """Returns what a pass has changed.

        What was written to, or assigned anew, with its old values is put in order.

        Args:
            in_place: all tensors are known to be in their places.
        """
        marks = (self._rest, self._trained)
        if in_place and not self._values and all(m.same() for m in marks):
            return []
        then = [mark for m in marks for mark in m.noted()]
        now = [mark for m in marks for mark in m.now()]
        found = []
        there = [e.place.holder.get(e.place.key) for e in self._entries]
        for i, (e, tensor) in enumerate(zip(self._entries, there, strict=True)):
            same, marked = tensor is e.tensor, now[i] == then[i]
            if same and marked and not self._values:
                continue
            got = tensors.kind(tensor)
            reshaped = None if got == e.kind else got
            if (
                reshaped is None
                and tensor is not None
                and self._equal(e, tensor, marked)
            ):
                e.touched = e.touched or not marked
                self._kept_trained = self._kept_trained or e.touched
                e.place.holder[e.place.key] = e.tensor
                if not (same and marked):
                    self._mark_again(i)
            else:
                found.append(Change(e, reshaped, e.copy is not None, not same))
        return found

    @property
    def marks(self) -> list[Marks]:
        """What all tensors showed in the step's state."""
        return [self._rest, self._trained]

    def put_back(self, entry: Entry) -> None:
        """Put a tensor with its values of the step's beginning into its place."""
        entry.place.holder[entry.place.key] = entry.tensor
        assert entry.copy is not None  # `Change.copied`
        if not tensors.same_bits(entry.tensor, entry.copy):
            with torch.no_grad():
                entry.tensor.copy_(entry.copy)
        self._mark_again(self._entries.index(entry))

    def _equal(self, e: Entry, tensor: Any, marked: bool) -> bool:
        """Returns whether a tensor of the right shape and type has its old values.

        Args:
            e: the tensor of the step's beginning.
            tensor: what is in its place now.
            marked: the former has the mark that it had then.
        """
        same = tensor is e.tensor
        if not same and e.role == TRAINABLE:
            return False  # gradients would come to the other one
        if e.copy is not None:
            return tensors.same_bits(e.copy, tensor)
        if e.digest is not None:
            return tensors.digest(tensor) == e.digest
        if not marked:
            return False
        return same or (
            tensors.plain_parts(tensor) is not None
            and tensors.same_bits(e.tensor, tensor)
        )

    def _mark_again(self, index: int) -> None:
        first = index < self._resting
        marks = self._rest if first else self._trained
        marks.renew_one(index if first else index - self._resting)
