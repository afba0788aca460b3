"""Reports of a run: who arrived when, what it cost, what it saved.

`plot_arrivals` needs matplotlib and `TensorBoardMonitor` tensorboard; both are loaded
when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.monitor.report import RunRecord, StepReport

if TYPE_CHECKING:
    from codedgrad.monitor.plots import plot_arrivals
    from codedgrad.monitor.tensorboard import TensorBoardMonitor

__all__ = ["RunRecord", "StepReport", "TensorBoardMonitor", "plot_arrivals"]


def __getattr__(name: str) -> Any:
    """Load what is heavy when it is asked for."""
    if name == "plot_arrivals":
        from codedgrad.monitor.plots import plot_arrivals

        return plot_arrivals
    if name == "TensorBoardMonitor":
        from codedgrad.monitor.tensorboard import TensorBoardMonitor

        return TensorBoardMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
