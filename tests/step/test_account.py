"""The account of a step: from the exchange's events to the report."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest

from codedgrad import codes
from codedgrad.exchange.base import Settled
from codedgrad.monitor.reporter import Reporter
from codedgrad.step.account import Account
from codedgrad.step.patience import Patience
from codedgrad.step.state import StepState, Stopwatch

if TYPE_CHECKING:
    from codedgrad.monitor.record import RunRecord
    from codedgrad.monitor.report import StepReport

REFUSED = 3


class Settling:
    """An exchange that is asked only for what happened."""

    def __init__(self) -> None:
        self.estimates: list[list[tuple[float, ...]]] = []
        self.rows: list[tuple[int, int, int, int, float]] = []
        self.settled_slices = self.biased_slices = 0
        self.noises = (0.125, 0.5)  # predicted and true
        self.asked = 0
        self.out: list[int] = []

    def settled(self) -> list[Any]:
        self.asked += 1
        new = self.estimates.pop(0) if self.estimates else []
        return [Settled(*e, *self.noises) for e in new]

    def arrivals(self) -> list[tuple[int, int, int, int, float]]:
        new, self.rows = self.rows, []
        return new

    def required_rows(self) -> list[list[int]]:
        return [[0], [1], [2]]

    def lost(self) -> list[int]:
        return self.out

    def counters(self) -> dict[str, float]:
        return {
            "decode_s": 0.0,
            "slices_settled": self.settled_slices,
            "slices_biased": self.biased_slices,
        }


def state_of(step: int) -> StepState:
    state = StepState(step)
    state.clock.lap("compute")
    state.clock.lap("wait")
    return state


def reported(steps: int, exchange: Settling) -> tuple[RunRecord, list[StepReport]]:
    reporter = Reporter(None)
    account = Account(codes.uncoded(3), Patience(0.1), reporter)
    reports = [
        account.end(state_of(step), exchange, 1.0)  # type: ignore[arg-type]
        for step in range(steps)
    ]
    return reporter.record, reports


def test_lost_workers_are_counted() -> None:
    exchange = Settling()
    exchange.out = [1, 2]
    assert [report.lost for report in reported(2, exchange)[1]] == [2, 2]


def test_reports_are_kept_in_order() -> None:
    record, reports = reported(3, Settling())
    assert list(record.reports) == reports
    assert [r.step for r in reports] == [0, 1, 2]
    assert reports[0].apply_s == 0.0  # no step was before it
    assert all(r.apply_s > 0.0 for r in reports[1:])


def test_an_exact_session_is_never_asked_for_estimates() -> None:
    exchange = Settling()
    record, reports = reported(3, exchange)
    assert exchange.asked == 0
    assert record.estimates == []
    assert [r.settled for r in reports] == [0, 0, 0]
    assert "decoder" not in record.summary()


def test_estimates_and_their_true_errors() -> None:
    exchange = Settling()
    exchange.settled_slices = 2
    exchange.estimates = [
        [(0, 0, 0.25, 0.1, 0.2, -1.0), (0, 1, 0.25, 0.3, 0.4, -1.0)],
        [(2, 0, 0.5, 0.2, 0.3, -1.0), (0, 0, 0.25, 0.1, 0.2, 0.05)],
        [(0, 1, 0.25, 0.3, 0.4, 0.5)],
    ]
    record, reports = reported(3, exchange)
    assert [r.settled for r in reports] == [2, 0, 1]  # step 2's came early
    assert reports[0].predicted_error == pytest.approx(0.2)
    assert reports[2].missing == 0.5
    assert [r.true_errors for r in reports] == [(), ((0, 0.05),), ((0, 0.5),)]
    assert [e.known for e in record.estimates] == [True, True, False]
    summary = record.summary()["decoder"]
    assert (summary["settled"], summary["known"]) == (3, 2)
    assert summary["predicted"] == pytest.approx(0.2)
    assert summary["true"] == pytest.approx(0.275)
    assert summary["calibration"] == pytest.approx(0.2 / 0.275)
    assert summary["exceeded"] == 0.5  # 0.5 > 0.4
    assert [r.predicted_noise for r in reports] == [0.125, 0.0, 0.125]
    assert (summary["noise"], summary["true_noise"]) == (0.125, 0.5)
    assert summary["refused_rows"] == 0


def test_noise_that_cannot_be_told_is_in_no_mean() -> None:
    exchange = Settling()
    exchange.settled_slices, exchange.noises = 1, (math.inf, math.nan)
    exchange.estimates = [[(0, 0, 0.25, 0.1, 0.2, 0.1)], [(1, 0, 0.2, 0.1, 0.2, -1.0)]]
    record, reports = reported(2, exchange)
    assert [r.predicted_noise for r in reports] == [0.0, 0.0]
    summary = record.summary()["decoder"]
    assert (summary["noise"], summary["true_noise"]) == (None, None)


def test_waiting_for_bias_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Settling()
    with caplog.at_level(logging.WARNING, "codedgrad"):
        exchange.biased_slices = 19
        reported(2, exchange)
        assert not caplog.records
        exchange.biased_slices = 20
        reported(2, exchange)
    assert [r.message.split(":")[0] for r in caplog.records] == ["max_noise"]


def test_refused_rows_are_told_once_a_step(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Settling()
    exchange.rows = [
        (0, 0, 0, 0, 0.1),
        (0, 1, 1, REFUSED, 0.1),
        (0, 1, 1, REFUSED, 0.2),
    ]
    with caplog.at_level(logging.WARNING, logger="codedgrad"):
        record, reports = reported(2, exchange)
    (line,) = caplog.messages
    assert "step 0" in line
    assert "worker(s) 1 holds NaN or Inf" in line
    assert set(reports[0].arrivals_s) == {0}
    assert [r.refused for r in reports] == [1, 0]
    assert record.refused_rows == {1: 1}
    assert record.summary()["decoder"]["refused_rows"] == 1
    assert record.summary()["decoder"]["calibration"] is None


def test_rows_of_earlier_steps_are_late() -> None:
    exchange = Settling()
    exchange.rows = [(-1, 2, 2, 2, 0.1), (0, 0, 0, 0, 0.1)]
    record, reports = reported(1, exchange)
    assert record.late_rows == {2: 1}
    assert set(reports[0].arrivals_s) == {0}


@pytest.mark.parametrize("late", [True, False])
def test_help_was_useful_if_the_shards_own_worker_was_late(late: bool) -> None:
    """The patience grows after useless help."""
    code = codes.spread(2)
    own = [code.row_node(worker, 0) for worker in range(2)]
    exchange = Settling()
    exchange.rows = [(0, 0, own[0], 0, 0.1)]
    if not late:
        exchange.rows.append((0, 1, own[1], 0, 0.1))
    exchange.required_rows = lambda: [[own[0]], [own[1]]]  # type: ignore[method-assign]
    patience = Patience(0.1)
    state = state_of(0)
    state.helped.append(int(code.tree.left[own[1]]))
    Account(code, patience, Reporter(None)).end(
        state,
        exchange,  # type: ignore[arg-type]
        1.0,
    )
    assert (patience.now > patience.setting) == (not late)


def test_the_stopwatch_books_laps() -> None:
    watch = Stopwatch()
    for phase in ("compute", "wait", "compute"):
        watch.lap(phase)
    assert set(watch.phases) == {"compute", "wait"}
    assert 0.0 <= sum(watch.phases.values()) <= watch.total()


def test_a_forwarded_step_has_nothing_done() -> None:
    assert StepState(3, forwarded=True).done == 0.0
    assert StepState(3).done == 1.0
