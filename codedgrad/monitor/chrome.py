"""A run as a Chrome trace: chrome://tracing, https://ui.perfetto.dev.

One process per worker; thread 0 is its Python, thread 1 its engine. Phases: COMPUTE
(own work), LATE (own work that proved needless), HELP (others' work), WAIT, SEND,
APPLY on the first, DECODE on the second.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from codedgrad.monitor.runlog import RunLog


def write_chrome_trace(run: RunLog, path: Path) -> None:
    """Write `run` as JSON; times in microseconds from the run's begin."""
    events: list[dict[str, Any]] = []
    first = float(np.nanmin(run.columns["begin_s"]))
    for worker in range(run.workers):
        for thread, name in ((0, "python"), (1, "engine")):
            events.append(_named("thread_name", worker, thread, name))
        events.append(_named("process_name", worker, 0, f"worker {worker}"))
        for i, step in enumerate(run.steps.tolist()):
            c = {name: float(v[i, worker]) for name, v in run.columns.items()}
            if not np.isnan(c["begin_s"]):
                events += _step(worker, step, c, first)
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _step(
    worker: int, step: int, c: dict[str, float], first: float
) -> list[dict[str, Any]]:
    at = c["begin_s"] - first
    late = c["abandoned"] > 0 and c["done"] < 1.0
    wait_s = max(0.0, c["wait_s"] - c["help_s"] - c["send_s"])
    apply_s = max(0.0, c["step_s"] - c["compute_s"] - c["wait_s"] - c["backpressure_s"])
    phases = [
        ("APPLY", at - c["apply_s"], c["apply_s"]),  # the script's, of the step before
        ("WAIT", at, c["backpressure_s"]),
        ("LATE" if late else "COMPUTE", at + c["backpressure_s"], c["compute_s"]),
    ]
    at += c["backpressure_s"] + c["compute_s"]
    for name, seconds in (
        ("SEND", c["send_s"]),
        ("HELP", c["help_s"]),
        ("WAIT", wait_s),
        ("APPLY", apply_s),
    ):
        phases.append((name, at, seconds))
        at += seconds
    out = [_event(n, worker, 0, s, t, step) for n, s, t in phases if t > 0.0]
    decode_s = c["decode_s"]
    if decode_s > 0.0:  # when exactly is not recorded: it ends with the step
        out.append(_event("DECODE", worker, 1, at - decode_s, decode_s, step))
    return out


def _event(
    name: str, worker: int, thread: int, at_s: float, seconds: float, step: int
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": worker,
        "tid": thread,
        "ts": round(1e6 * at_s, 1),
        "dur": round(1e6 * seconds, 1),
        "args": {"step": step},
    }


def _named(kind: str, worker: int, thread: int, name: str) -> dict[str, Any]:
    out = {"name": kind, "ph": "M", "pid": worker, "tid": thread}
    return {**out, "args": {"name": name}}
