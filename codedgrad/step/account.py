"""The account of a step that is over: from the exchange's events to its report.

It also tells the patience whether the help of the step was useful.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from math import isfinite
from typing import TYPE_CHECKING

from codedgrad.exchange.base import REFUSED
from codedgrad.monitor.record import Estimate
from codedgrad.monitor.report import StepReport

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.monitor.reporter import Reporter
    from codedgrad.step.patience import Patience
    from codedgrad.step.state import StepState

log = logging.getLogger("codedgrad")

_BIASED = 20  # attempts at a slice that failed for bias before it is said


class Account:
    """Makes the reports of one worker's steps."""

    def __init__(self, code: Code, patience: Patience, reporter: Reporter) -> None:
        """Begin before the first step.

        Args:
            code: The code of the job.
            patience: It learns after each step whether help was useful.
            reporter: It takes the reports.
        """
        self._code = code
        self._patience = patience
        self._reporter = reporter
        self._ended: float | None = None  # when the step before was over
        self._decode_s = 0.0  # the engine's total at that time
        self._settles = False  # no estimate so far; an exact session never has one
        self._fresh: list[Estimate] = []  # those of steps that have no report yet
        self._refused: dict[int, set[int]] = {}  # the workers, by step
        self._told_bias = False

    def end(self, state: StepState, exchange: Exchange, loss: float) -> StepReport:
        """Report the step of `state`, which has just been decoded.

        Args:
            state: What happened to this worker.
            exchange: The exchange that decoded the step; its events are drained.
            loss: The mean loss of the batch.
        """
        clock = state.clock
        arrivals = self._drain_arrivals(state, exchange)
        total_s = clock.total()
        refused = self._report_refused()
        counters = exchange.counters()
        decode_s = counters["decode_s"]
        self._say_biased(counters["slices_biased"])
        self._settles = self._settles or counters["slices_settled"] > 0
        true_errors = self._drain_estimates(exchange) if self._settles else ()
        settled = [e for e in self._fresh if e.step <= state.step]
        self._fresh = [e for e in self._fresh if e.step > state.step]
        apply_s = 0.0 if self._ended is None else clock.start - self._ended
        report = StepReport(
            step=state.step,
            begin_s=time.time() - total_s,
            step_s=total_s,
            compute_s=clock.phases["compute"],
            send_s=state.send_s,
            help_s=state.help_s,
            wait_s=clock.phases["wait"],
            backpressure_s=state.lag_s,
            decode_s=max(0.0, decode_s - self._decode_s),
            apply_s=apply_s,
            redundant_passes=len(state.helped),
            abandoned=state.abandoned,
            fast_forwarded=state.forwarded,
            loss=loss,
            arrivals_s=arrivals,
            settled=len(settled),
            refused=refused,
            lost=len(exchange.lost()),
            missing=_mean([e.missing for e in settled]),
            predicted_error=_mean([e.predicted for e in settled]),
            predicted_noise=_mean([e.noise for e in settled if isfinite(e.noise)]),
            true_errors=true_errors,
        )
        self._ended = clock.start + total_s
        self._decode_s = decode_s
        self._reporter.add(report, state.done)
        return report

    def _drain_arrivals(self, state: StepState, exchange: Exchange) -> dict[int, float]:
        """Return when each worker's own row arrived, and judge the help by them."""
        arrivals: dict[int, float] = {}
        own_rows = set()
        required = exchange.required_rows()
        for step, worker, row, kind, time_s in exchange.arrivals():
            if kind == REFUSED:
                self._refused.setdefault(step, set()).add(worker)
                continue
            if row not in required[worker]:
                continue
            if step == state.step:
                own_rows.add(row)
                arrivals[worker] = time_s - state.clock.start
            else:
                self._reporter.record.late(worker)
        if state.helped:
            # Help was useful if it was for a shard whose own worker was late indeed.
            self._patience.helped(
                useful=not all(
                    any(self._covers(row, node) for row in own_rows)
                    for node in state.helped
                )
            )
        return arrivals

    def _covers(self, row: int, node: int) -> bool:
        """Whether the row of a tree node contains the other node's."""
        tree = self._code.tree
        if self._code.linear:
            return False
        return bool(
            tree.start[row] <= tree.start[node] and tree.stop[node] <= tree.stop[row]
        )

    def _report_refused(self) -> int:
        """Warn of the workers whose rows were refused; return how many there were."""
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
                self._reporter.record.refused(worker)
        self._refused.clear()
        return count

    def _say_biased(self, often: float) -> None:
        """Say once that max_noise waits because the shards differ for good."""
        if self._told_bias or often < _BIASED:
            return
        self._told_bias = True
        log.warning(
            "max_noise: this worker waits for late ones, since the shards differ by "
            "what they hold, not only by chance: their spread is bias, which does not "
            "average out, and what is remembered of the late does not fill it in. "
            "Nobody need be waited for with shuffled shards, with redundancy "
            '(codes.spread), or where approximate(max_error=..., late="compensate") '
            "bounds the error instead"
        )

    def _drain_estimates(self, exchange: Exchange) -> tuple[tuple[int, float], ...]:
        """Record the new estimates; return (step, true error) where that is known."""
        true_errors = []
        for s in exchange.settled():
            estimate = Estimate(
                step=s.step,
                bucket=s.bucket,
                missing=s.missing,
                predicted=s.predicted,
                bound=s.bound,
                truth=s.truth if s.truth >= 0.0 else math.nan,
                noise=s.noise,
                true_noise=s.true_noise if s.truth >= 0.0 else math.inf,
            )
            self._reporter.record.settle(estimate)
            if estimate.known:
                true_errors.append((estimate.step, estimate.truth))
            else:
                self._fresh.append(estimate)
        return tuple(true_errors)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
