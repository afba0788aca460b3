"""What a step costs and who was late: from the exchange's events to a report."""

from __future__ import annotations

import logging
import math
import statistics
import time
from typing import TYPE_CHECKING

from codedgrad.exchange.base import REFUSED
from codedgrad.monitor.record import Estimate, RunRecord
from codedgrad.monitor.report import StepReport

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.monitor.reporter import Reporter
    from codedgrad.step.context import StepContext
    from codedgrad.step.patience import Patience
    from codedgrad.step.state import StepState, Stopwatch

log = logging.getLogger("codedgrad")


class Account:
    """Keeps one worker's accounts: reports, estimates, and the patience's lesson."""

    def __init__(self, code: Code, reporter: Reporter, patience: Patience) -> None:
        """Begin without steps; `patience` learns whether help was of use."""
        self._code = code
        self._reporter = reporter
        self._patience = patience
        self._ended: float | None = None
        self._decode_s = 0.0
        self._settles = False  # an exact exchange never settles
        self._fresh: list[Estimate] = []  # estimates of steps not reported yet
        self._refused: dict[int, set[int]] = {}  # workers whose rows were, by step

    @property
    def record(self) -> RunRecord:
        """The reports so far."""
        return self._reporter.record

    def close_step(
        self, context: StepContext, clock: Stopwatch, loss: float
    ) -> StepReport:
        """Report a step that is over.

        Args:
            context: the step.
            clock: it has run since the step's begin.
            loss: the batch's mean loss.
        """
        state, exchange = context.state, context.exchange
        arrivals = self._arrivals(context, clock)
        total_s = clock.total()
        refused = self._report_refused()
        counters = exchange.counters()
        decode_s = counters["decode_s"]
        self._settles = self._settles or counters["slices_settled"] > 0
        true_errors = self._drain_estimates(context) if self._settles else ()
        settled = [e for e in self._fresh if e.step <= state.step]
        self._fresh = [e for e in self._fresh if e.step > state.step]
        apply_s = 0.0 if self._ended is None else clock.start - self._ended
        self._ended = clock.start + total_s
        report = StepReport(
            step=state.step,
            step_s=total_s,
            compute_s=clock.phases["compute"],
            wait_s=clock.phases["wait"],
            backpressure_s=state.lag_s,
            redundant_passes=len(state.helped),
            abandoned=state.abandoned,
            fast_forwarded=state.forwarded,
            loss=loss,
            arrivals_s=arrivals,
            begin_s=time.time() - total_s,
            help_s=state.help_s,
            send_s=state.send_s,
            decode_s=max(0.0, decode_s - self._decode_s),
            apply_s=apply_s,
            settled=len(settled),
            missing=_mean([e.missing for e in settled]),
            predicted_error=_mean([e.predicted for e in settled]),
            true_errors=true_errors,
            refused=refused,
        )
        self._decode_s = decode_s
        self._reporter.add(report, state.done)
        return report

    def close(self) -> None:
        """Write what is left of the log."""
        self._reporter.close()

    def _drain_estimates(self, context: StepContext) -> tuple[tuple[int, float], ...]:
        """Record new estimates; returns (step, true error) of those that got known."""
        true_errors = []
        for s in context.exchange.settled():
            truth = s.truth if s.truth >= 0.0 else math.nan
            estimate = Estimate(
                step=s.step,
                bucket=s.bucket,
                missing=s.missing,
                predicted=s.predicted,
                bound=s.bound,
                truth=truth,
            )
            self.record.settle(estimate)
            if estimate.known:
                true_errors.append((estimate.step, estimate.truth))
            else:
                self._fresh.append(estimate)
        return tuple(true_errors)

    def _report_refused(self) -> int:
        """Say whose rows were refused; returns how many they are."""
        count = 0
        for step, workers in self._refused.items():
            names = ", ".join(map(str, sorted(workers)))
            log.warning(
                "step %d: the gradient of worker(s) %s holds NaN or Inf and is left "
                "out; the step is estimated from the others",
                step,
                names,
            )
            count += len(workers)
            for worker in workers:
                self.record.refused(worker)
        self._refused.clear()
        return count

    def _arrivals(self, context: StepContext, clock: Stopwatch) -> dict[int, float]:
        """Returns when each worker's own row arrived; judges the help."""
        state, exchange = context.state, context.exchange
        arrivals: dict[int, float] = {}
        own_rows: set[int] = set()
        required = exchange.required_rows()
        for step, worker, row, kind, time_s in exchange.arrivals():
            if kind == REFUSED:
                self._refused.setdefault(step, set()).add(worker)
                continue
            if row not in required[worker]:
                continue
            if step == state.step:
                own_rows.add(row)
                arrivals[worker] = time_s - clock.start
            else:
                self.record.late(worker)
        if state.helped:
            self._patience.helped(useful=self._useful(state, own_rows))
        return arrivals

    def _useful(self, state: StepState, own_rows: set[int]) -> bool:
        """Returns whether some help was for a shard whose own worker was late."""
        return not all(
            any(self._covers(row, node) for row in own_rows) for node in state.helped
        )

    def _covers(self, row: int, node: int) -> bool:
        tree = self._code.tree
        if self._code.linear:
            return False
        return bool(
            tree.start[row] <= tree.start[node] and tree.stop[node] <= tree.stop[row]
        )


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
