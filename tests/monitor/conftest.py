"""Reports to test with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from codedgrad.monitor.record import RunRecord
from codedgrad.monitor.recorder import Recorder
from codedgrad.monitor.report import StepReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKERS, STEPS = 4, 40


@pytest.fixture
def make_report() -> Callable[..., StepReport]:
    """A function that returns a report; any field may be given."""

    def report(**fields: Any) -> StepReport:
        usual: dict[str, Any] = {
            "step": 0,
            "step_s": 0.1,
            "compute_s": 0.05,
            "wait_s": 0.02,
            "backpressure_s": 0.0,
            "redundant_passes": 0,
            "abandoned": False,
            "fast_forwarded": False,
            "loss": 2.0,
            "arrivals_s": {0: 0.01, 1: 0.02},
        }
        return StepReport(**usual | fields)

    return report


@pytest.fixture
def make_record(make_report: Callable[..., StepReport]) -> Callable[..., RunRecord]:
    """A function that returns a record; worker 2 comes in every other step only."""

    def record(steps: int = 6) -> RunRecord:
        out = RunRecord()
        for step in range(steps):
            arrivals = {0: 0.01, 1: 0.02} | ({2: 0.03} if step % 2 else {})
            out.append(
                make_report(
                    step=step,
                    step_s=0.1 * (step + 1),
                    redundant_passes=1 - step % 2,
                    abandoned=step == 3,
                    loss=2.0 - 0.1 * step,
                    arrivals_s=arrivals,
                )
            )
        return out

    return record


@pytest.fixture
def exact_report(make_report: Callable[..., StepReport]) -> StepReport:
    """A report whose fields all differ and have more digits than are written."""
    return make_report(
        step=17,
        begin_s=1700000000.1234567,
        step_s=0.141592653589,
        compute_s=0.0653589793,
        send_s=1.23456789e-7,
        help_s=0.025,
        wait_s=0.0412345678,
        backpressure_s=12.3456789,
        decode_s=2e-5,
        apply_s=1234567.8,
        redundant_passes=3,
        abandoned=True,
        loss=0.693147180559,
        arrivals_s={0: 0.123456789, 2: -0.001, 1: 1234567.8},
        settled=2,
        refused=1,
        missing=0.2571828,
        predicted_error=0.1234567,
        true_errors=((15, 0.0512345), (16, 0.25)),
    )


@pytest.fixture
def run_report(make_report: Callable[..., StepReport]) -> Callable[..., StepReport]:
    """A function of step and worker that returns the report of a straggling run.

    Worker 3 is 8 x slow: it is abandoned after 130 ms, and every third step is decoded
    before it begins.
    """

    def report(step: int, worker: int) -> StepReport:
        slow = worker == 3
        return make_report(
            step=step,
            begin_s=1000.0 + 0.15 * step,
            step_s=0.14,
            compute_s=0.13 if slow else 0.10,
            send_s=0.001,
            help_s=0.0 if slow else 0.025,
            wait_s=0.0 if slow else 0.04,
            decode_s=0.002,
            apply_s=0.01,
            redundant_passes=0 if slow else 1,
            abandoned=slow,
            fast_forwarded=slow and step % 3 == 0,
            loss=2.0 / (step + 1),
            arrivals_s={0: 0.1, 1: 0.1, 2: 0.1},
        )

    return report


@pytest.fixture
def run(tmp_path: Path, run_report: Callable[..., StepReport]) -> Path:
    """The folder of a run of WORKERS workers and STEPS steps."""
    for worker in range(WORKERS):
        recorder = Recorder(tmp_path / "run", worker)
        for step in range(STEPS):
            recorder.step(run_report(step, worker), 0.1625 if worker == 3 else 1.0)
        recorder.close()
    return tmp_path / "run"
