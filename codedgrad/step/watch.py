"""A pass begins from the step's state and leaves nothing behind but its row.

Every pass of a step must begin from the same state, on whichever worker it runs, and
what it changes must travel in its row, or workers drift apart by who was late. So the
watch compares, around every pass, the state of all known models: the flags
`requires_grad` and `training`, which it puts back; gradients outside of the payload,
which it refuses; and all tensors that do not travel. Where one of these has changed,

- a buffer or parameter is put back and gets to travel: the pass sets the moved flag in
  its row, and all workers lay out again and compute the step once more;
- a tensor of a model that is not ours, and whatever cannot travel, is refused with its
  name.

What a loss function keeps elsewhere, in attributes, lists or counters, cannot travel.
Passes that change something there, which they may read again, are told so once.

A change shows in a tensor's version, address or place. In the first passes after a
laying out, and from then on at rarer and rarer steps, values are compared as well,
because `tensor.data.mul_(...)` changes no version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError
from codedgrad.ops import objects
from codedgrad.step import live
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.leaves import Leaves
from codedgrad.step.plain import PlainState
from codedgrad.step.strangers import Strangers
from codedgrad.step.witness import FOREIGN, STATIC, TRAINABLE, Entry, Witness

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from codedgrad.row.payload import Payload
    from codedgrad.step.subject import Subject

# Copies of what does not travel may take so many bytes, or twice the gradients' if that
# is more. A larger tensor is watched, but it cannot begin to travel.
_COPIES = 64 << 20


class Watch:
    """Watches the passes of one laying out.

    Attributes:
        found: names of own tensors that are to travel from now on.
    """

    def __init__(self, subject: Subject, payload: Payload, first_step: int) -> None:
        """Begin to watch at `first_step`."""
        self._subject, self._payload, self._first = subject, payload, first_step
        layout = payload.layout
        self._inside = {id(p) for p in layout.parameters}
        subject.inside = self._inside
        self._leaves = Leaves(self._inside)
        self._strangers = Strangers()
        self._plain = PlainState()
        self._loss_fn: Any = None
        self._others: list[Subject] = []
        self._made_of: list[tuple[int, int]] = []
        budget = 2 * layout.gradients * layout.dtype.itemsize
        self._witness = Witness(max(_COPIES, budget))
        self._values = False  # whether this step's passes are compared by values
        self._outside: list[Tensor] = []
        self._quick: Callable[[], bool] | None = None
        self.found: set[str] = set()

    # ---- a step ----

    def begin(self, step: int, loss_fn: Any = None) -> None:
        """Note the state from which all passes of a step begin.

        Args:
            step: the number of the step.
            loss_fn: the loss function; None: it is not looked into.
        """
        self._loss_fn = loss_fn
        since = step - self._first
        self._values = since < 2 or since & (since - 1) == 0
        self._others = [s for s in live.subjects() if s is not self._subject]
        for other in self._others:
            if not other.same():
                other.refresh()
        subjects = [self._subject, *self._others]
        made_of = [(s.number, s.generation) for s in subjects]
        if self._strangers.changed() or made_of != self._made_of:
            self._made_of = made_of
            self._list_entries()
        self._witness.begin(values=self._values)
        self._flags = _Flags(self._modules, self._parameters)
        self._note_gradients()
        self._quick = self._quick_look()

    def _quick_look(self) -> Callable[[], bool] | None:
        """Returns what sees by one call that a pass has changed nothing.

        None: it would not see all of it.
        """
        if self._values or self._others or self._outside or self._strangers.met:
            return None
        contents, slots = self._subject.contents, self._payload.buffers.slots
        marks = self._witness.marks
        return objects.quick_look(contents, slots, self._flags.noted, marks)

    def changing(self) -> set[str]:
        """Returns names of what passes change of what a loss function keeps."""
        return self._plain.told

    def _list_entries(self) -> None:
        travelling = {id(b) for b in self._payload.layout.buffers}
        entries: list[Entry] = []
        seen: set[int] = set(travelling)
        for subject in (self._subject, *self._others):
            own = subject is self._subject
            for place in subject.places():
                t = place.tensor()
                if t is None or id(t) in seen or place.name in subject.caches:
                    continue
                seen.add(id(t))
                role = STATIC if own else FOREIGN
                if id(t) in self._inside:
                    role = TRAINABLE
                title = "" if own else f" of {subject.title}"
                entries.append(Entry(place, t, role, f"{place.name!r}{title}"))
        entries += [e for e in self._strangers.entries() if id(e.tensor) not in seen]
        self._witness.watch(entries)
        subjects = (self._subject, *self._others)
        self._modules = [m for s in subjects for m in s.modules]
        self._modules += self._strangers.modules()
        self._known = {id(m) for s in subjects for m in s.modules}
        every = [e.tensor for e in entries if e.place.parameter]
        every += [t for p in self._subject.parameters if (t := p.tensor()) is not None]
        self._parameters = list({id(p): p for p in every}.values())
        self._outside = [p for p in self._parameters if id(p) not in self._inside]

    def _note_gradients(self) -> None:
        self._grads = [p.grad for p in self._outside]
        self._grad_versions = [-1 if g is None else g._version for g in self._grads]

    # ---- a pass ----

    def __enter__(self) -> None:
        """Begin a pass."""
        self._payload.tail.moved = False
        if self._values:
            self._strangers.listen(self._known)
            self._plain.begin(self._loss_fn, self._modules)

    def loss_computed(self, loss: Tensor) -> None:
        """Look at a loss before its backward.

        Raises:
            ConfigError: it gives a gradient to something outside of the payload.
        """
        if self._values:
            self._leaves.check(loss)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """End a pass, finished or not: put the state back, look what has changed.

        Raises:
            ConfigError: something has changed that cannot travel.
        """
        if kind is None and self._quick is not None and self._quick():
            self._payload.buffers.collect_in_place()
            return
        self._quick = None  # what is found below may change what it knows
        self._strangers.stop()
        self._flags.put_back()
        if self._values:
            self._plain.end(finished=kind is None)
        if kind is None or issubclass(kind, Abandoned):
            self._payload.buffers.collect()
            self._compare(finished=kind is None)

    def _compare(self, *, finished: bool) -> None:
        if self._outside:
            self._compare_gradients()
        same = self._in_place()
        in_place = same and not self._strangers.met
        for change in self._witness.changes(in_place=in_place):
            entry = change.entry
            if entry.role == TRAINABLE and change.copied and not finished:
                self._witness.put_back(entry)  # weights were exchanged for a while
            elif entry.role == FOREIGN:
                raise ConfigError(_refusal(entry))
            elif change.reshaped is not None and not entry.place.persistent:
                self._subject.caches.add(entry.place.name)
                self._made_of = []  # it is watched no more
            elif (why := change.stays()) is not None:
                raise ConfigError(f"the pass has changed {entry.title}, {why}")
            else:
                self._witness.put_back(entry)
                self.found.add(entry.place.name)
                self._payload.tail.moved = True
        if self._values:  # else nobody listens
            new = [*self._strangers.changed_entries(), *self._plain.changed_entries()]
            if new:
                raise ConfigError(_refusal(new[0]))
        if not same and not self._in_place():
            self._see_new()

    def _in_place(self) -> bool:
        """Returns whether all modules hold the same modules and tensors as before."""
        if not self._subject.same_tensors():
            return False
        return not self._others or all(s.same_tensors() for s in self._others)

    def _compare_gradients(self) -> None:
        for p, g, v in zip(
            self._outside, self._grads, self._grad_versions, strict=True
        ):
            if p.grad is not g or (g is not None and g._version != v):
                raise ConfigError(
                    f"the pass gave a gradient to {live.name_of(p)}, which is not in "
                    f"the payload, so that gradient would be lost; {live.REMEDY}"
                )

    def _see_new(self) -> None:
        """Judge the tensors that modules have and did not have before the pass."""
        before = {p.name for p in (*self._subject.parameters, *self._subject.buffers)}
        self._subject.refresh()
        for other in self._others:
            if not other.same_tensors():
                other.refresh()
        for place in (*self._subject.parameters, *self._subject.buffers):
            if place.name in before:
                continue
            if place.parameter or place.persistent:
                raise ConfigError(
                    f"the pass has made {place.name!r}, which was not there before; "
                    f"run one forward pass before CodedGradient is made, and then "
                    f"codedgrad.broadcast_parameters(model.state_dict())"
                )
            self._subject.caches.add(place.name)
        self._list_entries()
        self._witness.begin(values=self._values)


class _Flags:
    """`requires_grad` of parameters and `training` of modules, to be put back."""

    def __init__(self, modules: list[Any], parameters: list[Tensor]) -> None:
        self._modules, self._parameters = modules, parameters
        self._training = objects.read(modules, "training", False)
        self._requires = objects.read(parameters, "requires_grad", False)

    @property
    def noted(self) -> list[tuple[list[Any], str, list[Any]]]:
        """Objects, the name of the flag, and its values."""
        return [
            (self._modules, "training", self._training),
            (self._parameters, "requires_grad", self._requires),
        ]

    def put_back(self) -> None:
        if not objects.reads(self._modules, "training", False, self._training):
            for module, flag in zip(self._modules, self._training, strict=True):
                module.training = flag
        if not objects.reads(self._parameters, "requires_grad", False, self._requires):
            for p, flag in zip(self._parameters, self._requires, strict=True):
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


def _refusal(entry: Entry) -> str:
    return (
        f"the pass has changed {entry.title}, which does not belong to this model, so "
        f"workers would differ; let it travel with this model's steps: "
        f"CodedGradient(model, also=[module]); or put it into eval mode before the step"
    )
