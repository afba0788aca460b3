"""The slowness that CODEDGRAD_FAULTS asks for, in a training loop that is not ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from codedgrad.job.faults import Injector

if TYPE_CHECKING:
    from codedgrad.job.faults import Faults


class SlowLoop:
    """Stretches forwards and backwards of the drop-in's worker, if it is told to."""

    def __init__(self, faults: Faults | None, worker: int) -> None:
        """Take the plan, None for no slowness, and the number of this worker."""
        self._injector = Injector(faults, worker) if faults else None
        self._exchange = -1
        self._began = self._slowed_s = self._pass_s = 0.0

    def pass_begins(self, exchange: int) -> None:
        """Hear that a pass begins; a stall at the first one of an exchange is slept."""
        injector = self._injector
        if injector is None:
            return
        if exchange != self._exchange:
            self._exchange = exchange
            injector.begin(exchange, self._pass_s)
        injector.resume()
        self._began, self._slowed_s = time.monotonic(), injector.slowed_s

    def boundary(self) -> None:
        """Stretch the time since the pass began, or since the last boundary.

        All of it, also if the exchange is decoded meanwhile: a loop that is not ours
        does not leave a pass that nobody needs.
        """
        if self._injector is not None:
            self._injector.boundary(_go_on)

    def pass_ends(self) -> None:
        """Stretch the rest of the pass, and note how long passes take."""
        injector = self._injector
        if injector is None:
            return
        injector.boundary(_go_on)
        spent = time.monotonic() - self._began
        self._pass_s = max(0.0, spent - (injector.slowed_s - self._slowed_s))


def _go_on() -> None:
    pass
