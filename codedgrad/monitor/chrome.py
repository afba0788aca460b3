"""A run as a Chrome trace, for chrome://tracing or https://ui.perfetto.dev.

Every worker is a process. Thread 0 is its Python, with the phases COMPUTE (own passes),
LATE (own passes that proved needless), HELP (passes for others), WAIT, SEND and APPLY.
Thread 1 is its engine, with the phase DECODE.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from codedgrad.monitor.runlog import RunLog


_PYTHON, _ENGINE = 0, 1  # the threads of a worker


@dataclass(frozen=True)
class _Phase:
    """A phase of a step; `begin_s` counts from the begin of the run."""

    name: str
    begin_s: float
    seconds: float
    thread: int = _PYTHON


def write_chrome_trace(run: RunLog, path: Path) -> None:
    """Write `run` as JSON with times in microseconds from the begin of the run."""
    events: list[dict[str, Any]] = []
    first = float(np.nanmin(run.columns["begin_s"]))
    for worker in range(run.workers):
        for thread, name in ((_PYTHON, "python"), (_ENGINE, "engine")):
            events.append(_named("thread_name", worker, thread, name))
        events.append(_named("process_name", worker, _PYTHON, f"worker {worker}"))
        for i, step in enumerate(run.steps.tolist()):
            row = {name: float(v[i, worker]) for name, v in run.columns.items()}
            if not np.isnan(row["begin_s"]):
                phases = _phases(row, row["begin_s"] - first)
                events += [_event(worker, step, p) for p in phases if p.seconds > 0.0]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _phases(row: dict[str, float], begin_s: float) -> list[_Phase]:
    """Lay the times of one line of the log end to end from `begin_s`.

    The log has durations, not moments: within a step the phases stand in their usual
    order.
    """
    late = row["abandoned"] > 0 and row["done"] < 1.0
    compute_s, lag_s = row["compute_s"], row["backpressure_s"]
    wait_s = max(0.0, row["wait_s"] - row["help_s"] - row["send_s"])
    rest_s = max(0.0, row["step_s"] - compute_s - row["wait_s"] - lag_s)
    before_s = row["apply_s"]  # what the script did after the step before
    phases = [_Phase("APPLY", begin_s - before_s, before_s)]
    for name, seconds in (
        ("WAIT", lag_s),
        ("LATE" if late else "COMPUTE", compute_s),
        ("SEND", row["send_s"]),
        ("HELP", row["help_s"]),
        ("WAIT", wait_s),
        ("APPLY", rest_s),
    ):
        phases.append(_Phase(name, begin_s, seconds))
        begin_s += seconds
    # The log does not tell when the engine decoded; it is drawn to end with the step.
    decode_s = row["decode_s"]
    phases.append(_Phase("DECODE", begin_s - decode_s, decode_s, _ENGINE))
    return phases


def _event(worker: int, step: int, phase: _Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "ph": "X",
        "pid": worker,
        "tid": phase.thread,
        "ts": round(1e6 * phase.begin_s, 1),
        "dur": round(1e6 * phase.seconds, 1),
        "args": {"step": step},
    }


def _named(kind: str, worker: int, thread: int, name: str) -> dict[str, Any]:
    out = {"name": kind, "ph": "M", "pid": worker, "tid": thread}
    return {**out, "args": {"name": name}}
