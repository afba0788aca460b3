"""State of a loss function that is neither a parameter nor a buffer: seen, and told.

It cannot travel and cannot be put back: each worker has its own, which depends on how
many passes the worker has made, and so on who was late. If only a log reads it, that is
no harm, so what changes there is told once, by name. A model that the loss function
reaches without calling it is refused like one that it calls.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from codedgrad.step.reach import Reached
from codedgrad.step.strangers import entries_of, has_changed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from codedgrad.step.witness import Entry

log = logging.getLogger("codedgrad")


class PlainState:
    """Compares around a pass what its loss function can reach.

    Attributes:
        told: the names of what passes have changed.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._before: Reached | None = None
        self._entries: list[Entry] = []
        self.told: set[str] = set()
        self._looked: tuple[Any, list[nn.Module]] = None, []

    def begin(self, loss_fn: Any, modules: Iterable[nn.Module]) -> None:
        """Note the state before a pass.

        Args:
            loss_fn: the loss function; None: it is not looked into.
            modules: those that are known.
        """
        self._entries = []
        self._before = None if loss_fn is None else Reached(loss_fn, modules)
        if self._before is not None:
            self._looked = loss_fn, list(modules)
            self._entries = [e for m in self._before.modules for e in entries_of(m)]

    def end(self, *, finished: bool) -> None:
        """Compare after a pass, and tell what has changed."""
        before, self._before = self._before, None
        if before is None or not finished:
            return
        changed = set(Reached(*self._looked).changed(before)) - self.told
        self._looked = None, []
        if changed:
            self.told |= changed
            names = sorted(changed)
            shown = ", ".join(names[:4]) + (" ..." if names[4:] else "")
            log.warning(
                "passes change %s, which each worker keeps for itself, as it depends "
                "on how many passes the worker has made, that is, on who was late. "
                "That is fine for what only a log reads. What later passes compute "
                "with must be a buffer of the model (register_buffer), or change "
                "between the steps",
                shown,
            )

    def changed_entries(self) -> list[Entry]:
        """Return tensors of modules that are not known which the pass has changed."""
        found = list(filter(has_changed, self._entries))
        self._entries = []
        return found


def no_function() -> None:
    """Stands for the loss function where it is in the user's own loop."""
