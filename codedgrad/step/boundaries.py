"""Module boundaries of a pass: where it can be slowed down, timed or abandoned.

At a boundary the visitor is called while a pass of ours runs: before the forward of a
module, or after the gradient of a module's first parameter. A hook costs microseconds,
which small modules do not take, and eight boundaries at about equal times are enough to
leave a pass soon. So the second pass only, which learns, has a hook on every module
with parameters of its own (the first pass is full of allocations). The passes after it
have hooks at the chosen places, which are fewer where a pass is over in milliseconds.
Where a later pass meets few of these, because it takes another way through the model,
the places are chosen again.

Nothing else of the model is touched: gradients, the user's hooks and `state_dict` stay
as they are.

What torch.compile traces has no boundaries inside its forward, since each would break
the graph in two; the boundaries after gradients stay.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from codedgrad.step.attach import before_forward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

MOST = 8  # boundaries of a pass
_FEW, _APART_S = 4, 1e-3  # a short pass has fewer, since it is over soon


class Abandoned(BaseException):
    """The pass is not needed any more.

    It is a BaseException, so that an `except Exception` in a loss function lets it
    through.
    """


class Visitor(Protocol):
    """Hears of the module boundaries of a pass."""

    def visit(self) -> None:
        """Called at every boundary; what it raises ends the pass."""


class Boundaries:
    """The hooks on the modules of one model; they call nobody outside of `watch`."""

    def __init__(self, modules: Sequence[nn.Module], *, slowed: bool = True) -> None:
        """Attach the hooks.

        Args:
            modules: the first one is the model.
            slowed: whether a pass may be made slow at its boundaries; see `spread_out`.
        """
        self._places, self._slowed = list(_places(modules)), slowed
        # The visitor's method, inside of a pass; of the pass that is about to begin.
        self._visit: Callable[[], None] | None = None
        self._next: Callable[[], None] | None = None
        self._handles: list[Any] = []
        self._visits: list[tuple[int, float]] = []  # place and time, while it learns
        self._count = 0  # visits of one pass
        self._begin = 0.0  # when a pass that is learned from has begun
        self._chosen = False
        self._passes = 0  # complete ones since the hooks were attached
        self._usual = 0  # visits of the pass that was learned from, at chosen places
        self._attach(range(len(self._places)))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def watch(self, visitor: Visitor) -> Self:
        """Inside `with` it, `visitor.visit` is called at every boundary."""
        self._next = visitor.visit
        return self

    def __enter__(self) -> None:
        """Begin a pass."""
        self.begin_again()
        self._visit = self._next

    def begin_again(self) -> None:
        """Learn nothing from what this pass has computed so far, a rehearsal say."""
        self._count = 0
        if not self._chosen:
            self._visits, self._begin = [], time.monotonic()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """End a pass, and learn from one that was not left early."""
        self._visit = self._next = None
        if kind is None:
            self._completed()

    def _completed(self) -> None:
        self._passes += 1
        if self._chosen:
            if 2 * self._count < self._usual:
                self._choose_from(range(len(self._places)))
                self._chosen, self._passes = False, 1
        elif self._passes >= 2:
            ended = time.monotonic()
            places = spread_out(self._visits, self._begin, ended, slowed=self._slowed)
            self._usual = sum(place in places for place, _ in self._visits)
            self._choose_from(sorted(places))
            self._chosen = True

    def _choose_from(self, places: Iterable[int]) -> None:
        self.remove()
        self._attach(places)

    def _attach(self, places: Iterable[int]) -> None:
        for place in places:
            at = self._places[place]
            hook = _hook(weakref.ref(self), place)
            if isinstance(at, nn.Module):
                self._handles.append(before_forward(at, hook))
            else:
                self._handles.append(at.register_post_accumulate_grad_hook(hook))

    def visit(self, place: int) -> None:
        """Hear of a boundary, inside `watch`."""
        if self._visit is None:
            return
        self._count += 1
        if not self._chosen:
            self._visits.append((place, time.monotonic()))
        self._visit()


def _hook(owner: weakref.ref[Boundaries], place: int) -> Callable[..., None]:
    """Returns a hook that torch.compile sees do nothing.

    It holds its owner weakly, as `codedgrad.row.weak` tells.
    """

    def hook(*_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        boundaries = owner()
        if boundaries is not None:
            boundaries.visit(place)

    return hook


def _places(modules: Sequence[nn.Module]) -> Iterator[nn.Module | torch.Tensor]:
    """Yields the modules and parameters that can have a hook."""
    for module in modules:
        own = list(module.parameters(recurse=False))
        if own or module is modules[0]:
            yield module
        first = next((p for p in own if p.requires_grad), None)
        if first is not None:
            yield first


def spread_out(
    visits: list[tuple[int, float]], begin: float, end: float, *, slowed: bool = True
) -> set[int]:
    """Returns the places that give at most `MOST` visits, at about equal times.

    Args:
        visits: place and time of every visit of a pass.
        begin: when the pass began.
        end: when it ended.
        slowed: whether what lies before a visit is stretched there, so that a short
            pass has some, and the first is at its begin. Else they lie in the middle of
            equal parts, since each pass looks at its begin whether it is needed.
    """
    count: dict[int, int] = {}
    for place, _ in visits:
        count[place] = count.get(place, 0) + 1
    chosen: set[int] = set()
    used = 0
    least, shift = (_FEW, 0.0) if slowed else (1, 0.5)
    most = min(MOST, max(least, int((end - begin) / _APART_S)))
    for i in range(most):
        wanted = begin + (end - begin) * (i + shift) / most
        free = [v for v in visits if v[0] not in chosen and used + count[v[0]] <= most]
        if not free:
            break
        place, at = min(free, key=lambda visit: abs(visit[1] - wanted))
        if abs(at - wanted) <= (end - begin) / most or not chosen:
            chosen.add(place)
            used += count[place]
    if not chosen and count:  # each place is visited often: a recurrent model
        chosen.add(min(count, key=count.__getitem__))
    return chosen
