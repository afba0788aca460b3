"""What the drop-in's exchanges took: their reports, and the run's log.

An exchange begins for its worker at the first forward, or backward, that belongs to it,
and ends when `p.grad` holds the mean. The time in between is the user's loop as well as
the passes: data that is read between two passes of one exchange counts as compute. The
loss is not known, since the loop keeps it to itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from codedgrad.step.account import Account
from codedgrad.step.patience import Patience
from codedgrad.step.state import StepState

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport
    from codedgrad.monitor.reporter import Reporter


class Journal:
    """Times one worker's exchanges and reports each.

    Attributes:
        report: of the last exchange; None before the first has ended.
    """

    def __init__(self, code: Code, exchange: Exchange, reporter: Reporter) -> None:
        """Begin before the first exchange.

        Args:
            code: who computes what.
            exchange: it is asked what has arrived.
            reporter: it takes the reports.
        """
        self._exchange, self._reporter = exchange, reporter
        self._account = Account(code, Patience(0.0), reporter)
        self._state: StepState | None = None
        self.report: StepReport | None = None

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._reporter.record

    def begins(self, number: int) -> StepState:
        """Hear that something of an exchange begins; only the first time counts."""
        if self._state is None or self._state.step != number:
            self._state = StepState(number, self._exchange.forwarded(number))
        return self._state

    def opened(self, lag_s: float) -> None:
        """Hear that the exchange is open, after a wait of so many seconds."""
        if self._state is not None:
            self._state.clock.lap("lag")
            self._state.lag_s = lag_s

    def computed(self, *, needed: bool = True) -> None:
        """Hear that all passes so far are over, or whether they were for nothing."""
        if self._state is not None:
            self._state.clock.lap("compute")
            if not needed:
                self._state.done = 0.0

    def decoded(self) -> None:
        """Hear that the exchange is over, and report it."""
        state = self._state
        if state is None:
            return
        state.clock.lap("wait")
        self.report = self._account.end(state, self._exchange, math.nan)
        self._state = None

    def close(self) -> None:
        """Write what is left of the log."""
        self._reporter.close()
