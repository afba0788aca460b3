"""From what happened in a step to its report, the log, and the patience's lesson."""

from __future__ import annotations

import logging
import math
import statistics
import time
from typing import TYPE_CHECKING

from codedgrad.monitor.report import Estimate, RunRecord, StepReport

if TYPE_CHECKING:
    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.exchange.base import Exchange
    from codedgrad.lab.traces import Recorder
    from codedgrad.step.passes import Stopwatch
    from codedgrad.step.patience import Patience

log = logging.getLogger("codedgrad")

_REFUSED = 3  # kind of arrival, see Exchange.arrivals


class StepState:
    """What happens to this worker in one step."""

    def __init__(self, step: int, *, forwarded: bool) -> None:
        """Nothing yet."""
        self.step = step
        self.forwarded = forwarded
        self.abandoned = False
        self.done = 0.0 if forwarded else 1.0  # share of the own required work
        self.helped: list[int] = []
        self.help_s = 0.0
        self.send_s = 0.0
        self.finished: dict[int, Tensor] = {}


class Reporter:
    """Writes the reports of one worker."""

    def __init__(
        self, code: Code, rank: int, patience: Patience, recorder: Recorder | None
    ) -> None:
        """For worker `rank`; `recorder` None: no log."""
        self.record = RunRecord()
        self._code = code
        self._rank = rank
        self._patience = patience
        self._recorder = recorder
        self._ended: float | None = None
        self._decode_s = 0.0
        self._settles = False  # never, in an exact session
        self._fresh: list[Estimate] = []  # of steps that are not reported yet
        self._refused: dict[int, set[int]] = {}  # by step, the workers

    def end(
        self,
        state: StepState,
        clock: Stopwatch,
        exchange: Exchange,
        lag_s: float,
        loss: float,
    ) -> StepReport:
        """Report a step that is over."""
        arrivals = self._arrivals(state, clock, exchange)
        total_s = clock.total()
        refused = self._report_refused()
        counters = exchange.counters()
        decode_s = counters["decode_s"]
        self._settles = self._settles or counters["slices_settled"] > 0
        true_errors = self._drain_estimates(exchange) if self._settles else ()
        settled = [e for e in self._fresh if e.step <= state.step]
        self._fresh = [e for e in self._fresh if e.step > state.step]
        apply_s = 0.0 if self._ended is None else clock.start - self._ended
        self._ended = clock.start + total_s
        report = StepReport(
            step=state.step,
            step_s=total_s,
            compute_s=clock.phases["compute"],
            wait_s=clock.phases["wait"],
            backpressure_s=lag_s,
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
        self.record.append(report)
        if self._recorder is not None:
            self._recorder.step(report, state.done)
        return report

    def close(self) -> None:
        """Write what is left of the log."""
        if self._recorder is not None:
            self._recorder.close()

    def _drain_estimates(self, exchange: Exchange) -> tuple[tuple[int, float], ...]:
        """Record the new estimates; returns (step, true error) as they got known."""
        true_errors = []
        for s in exchange.settled():
            truth = s.truth if s.truth >= 0.0 else math.nan
            estimate = Estimate(
                s.step, s.bucket, s.missing, s.predicted, s.bound, truth
            )
            self.record.settle(estimate)
            if estimate.known:
                true_errors.append((estimate.step, estimate.truth))
            else:
                self._fresh.append(estimate)
        return tuple(true_errors)

    def _report_refused(self) -> int:
        """Say whose rows were refused; returns how many."""
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

    def _arrivals(
        self, state: StepState, clock: Stopwatch, exchange: Exchange
    ) -> dict[int, float]:
        """Who arrived when; was the help of any use?"""
        arrivals: dict[int, float] = {}
        own_rows = set()
        required = exchange.required_rows()
        for step, worker, row, kind, time_s in exchange.arrivals():
            if kind == _REFUSED:
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
            # Useful: for a shard whose own worker was late indeed.
            self._patience.helped(
                useful=not all(
                    any(self._covers(row, node) for row in own_rows)
                    for node in state.helped
                )
            )
        return arrivals

    def _covers(self, row: int, node: int) -> bool:
        tree = self._code.tree
        if self._code.linear:
            return False
        return bool(
            tree.start[row] <= tree.start[node] and tree.stop[node] <= tree.stop[row]
        )


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
